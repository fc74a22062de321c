//! Echogate for VPN servers that are not written in Rust. `include/echogate.h` is made from this crate, and is where its users
//! read; `docs/embedding.md` tells the rest.
//!
//! Three rules:
//! * No panic leaves ([`guarded`]), so none unwinds through C.
//! * C gets numbers, never pointers of ours ([`registry`]): a freed one is told from one in use.
//! * C's pointers are checked for all that can be checked ([`pointers`]).
//!
//! Rejected: functions of one handle that several threads may call at once. The idents and the sweep have one owner, and a lock
//! that waits would stall the server's thread; so the second is told that it is.

#![expect(unsafe_code, reason = "C passes pointers")]
#![expect(clippy::missing_safety_doc, reason = "one contract for the pointers of all functions: at the header's top")]

mod answer;
mod outside;
mod packets;
mod pointers;
mod proxy;
mod registry;
mod settings;
mod status;

use std::panic::{self, AssertUnwindSafe};

pub use answer::{EchogateAnswer, EchogateReason, EchogateVerdict, echogate_reason_name};
pub use outside::*;
pub use packets::{
    ECHOGATE_AT_LAST, ECHOGATE_BATCH_MAX, ECHOGATE_ERROR_BYTES_MAX, ECHOGATE_FOREVER, EchogatePacket, echogate_expire,
    echogate_inbound, echogate_inbound_batch, echogate_not_sent, echogate_now, echogate_outbound,
    echogate_outbound_batch, echogate_tell,
};
pub use proxy::{
    EchogateHandle, EchogateProxy, echogate_handle_free, echogate_handle_new, echogate_proxy_free, echogate_proxy_new,
    echogate_receiver_new,
};
pub use settings::{EchogateSettings, echogate_settings_init};
pub use status::{EchogateStatus, echogate_status_text};

/// Does a call's work. A panic ends here.
fn guarded(work: impl FnOnce() -> Result<(), EchogateStatus>) -> EchogateStatus {
    // Unwind safe: what was being changed was locked, and is poisoned now.
    match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => EchogateStatus::Ok,
        Ok(Err(status)) => status,
        Err(payload) => {
            // Its drop is foreign code once more, which may panic: better leaked.
            std::mem::forget(payload);
            EchogateStatus::Panicked
        }
    }
}
