//! Proxies, and the handles by which threads use them.

use std::ffi::c_char;
use std::sync::Arc;

use echogate::proxy::{Handle, Proxy};

use crate::guarded;
use crate::pointers;
use crate::registry::{Kind, Registry};
use crate::settings::EchogateSettings;
use crate::status::EchogateStatus;

/// A proxy: policy and tables, shared by its handles. 0 is none.
pub type EchogateProxy = u64;

/// One thread's way into a proxy. 0 is none.
pub type EchogateHandle = u64;

pub(crate) static PROXIES: Registry<Arc<Proxy>, 64> = Registry::new(Kind::Proxy);
pub(crate) static HANDLES: Registry<Handle, 1024> = Registry::new(Kind::Handle);

/// Makes a proxy. ECHOGATE_STATUS_SETUP comes with a text in `error` (up to `error_size` bytes, always NUL-terminated;
/// NULL for none) that says what is wrong and what mends it. There can be 64 at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_proxy_new(
    settings: *const EchogateSettings,
    proxy: *mut EchogateProxy,
    error: *mut c_char,
    error_size: usize,
) -> EchogateStatus {
    guarded(|| {
        pointers::check_value(proxy)?;
        // SAFETY: the header's contract for pointers.
        let settings = unsafe { EchogateSettings::read(settings) }?;
        // SAFETY: as above, for the texts.
        let parsed = unsafe { settings.parse() };
        let made = parsed.and_then(|settings| Proxy::new(&settings).map_err(|error| error.to_string()));
        let made = made.map_err(|reason| {
            // SAFETY: as above, for the text's buffer.
            unsafe { pointers::put_text(error, error_size, &reason) };
            EchogateStatus::Setup
        })?;
        // SAFETY: as above.
        unsafe { pointers::put(proxy, PROXIES.insert(made)?) }
    })
}

/// Frees a proxy. Handles and outsides made of it go on, and the tables live as long as one of them.
#[unsafe(no_mangle)]
pub extern "C" fn echogate_proxy_free(proxy: EchogateProxy) -> EchogateStatus {
    guarded(|| PROXIES.release(proxy).map(drop))
}

/// The handle of worker `worker`, from 0, for a thread that has packets of clients: a thread may use it for one call at a
/// time; ECHOGATE_STATUS_BUSY is the answer to a second one. Freed, it can be had again, with all mappings. There can be
/// 1024 at once, with those of echogate_receiver_new.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_handle_new(
    proxy: EchogateProxy,
    worker: u32,
    handle: *mut EchogateHandle,
) -> EchogateStatus {
    guarded(|| {
        pointers::check_value(handle)?;
        let worker = usize::try_from(worker).unwrap_or(usize::MAX);
        let made = PROXIES.get(proxy)?.handle(worker).ok_or(EchogateStatus::Taken)?;
        // SAFETY: the header's contract for pointers.
        unsafe { pointers::put(handle, HANDLES.insert(made)?) }
    })
}

/// A handle for a thread that only has packets from outside: as many as there are such threads. It makes no mappings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_receiver_new(proxy: EchogateProxy, handle: *mut EchogateHandle) -> EchogateStatus {
    guarded(|| {
        pointers::check_value(handle)?;
        let made = PROXIES.get(proxy)?.receiver();
        // SAFETY: the header's contract for pointers.
        unsafe { pointers::put(handle, HANDLES.insert(made)?) }
    })
}

/// Frees a handle, a poisoned one too. ECHOGATE_STATUS_BUSY, and nothing is freed, while another thread uses it.
#[unsafe(no_mangle)]
pub extern "C" fn echogate_handle_free(handle: EchogateHandle) -> EchogateStatus {
    guarded(|| HANDLES.remove(handle).map(drop))
}
