//! Tables that outlive those who use them, as the gateway's do: one memory for each size, for game after game.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use echogate::proxy::{Keys, Settings, Tables};
use echogate::state::{Shape, State};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Where the echoes are, and how long a slot is (`src/state.rs`).
const ECHOES_AT: u64 = 4096;
const SLOT_BYTES: u64 = 64;

thread_local! {
    /// Memory is never given back: a game gets that of another one, emptied.
    static ALL: RefCell<HashMap<(usize, u32), Rc<State>>> = RefCell::default();
}

pub(super) struct Memory {
    state: Rc<State>,
    file: File,
    slots_at: u64,
    keys: Keys,
}

impl Memory {
    /// Empty, and under keys of this seed.
    pub(super) fn new(settings: &Settings, seed: u64) -> Result<Memory, String> {
        let shape = Shape { echo_words_log2: settings.echo_words_log2, echo_timeout: settings.echo_timeout };
        let make = || State::create(&shape, &settings.addresses).map(Rc::new).map_err(|error| error.to_string());
        let size = (settings.addresses.len(), settings.echo_words_log2);
        let state = ALL.with_borrow_mut(|all| match all.get(&size) {
            Some(state) => Ok(Rc::clone(state)),
            None => make().inspect(|state| drop(all.insert(size, Rc::clone(state)))),
        })?;
        let file = state.as_fd().try_clone_to_owned().map(File::from).map_err(|error| error.to_string())?;
        let slots_at = ECHOES_AT + (8 << settings.echo_words_log2);
        let length = slots_at - ECHOES_AT + SLOT_BYTES * 65_536 * settings.addresses.len() as u64;
        let zeroes = vec![0; usize::try_from(length).map_err(|error| error.to_string())?];
        file.write_all_at(&zeroes, ECHOES_AT).map_err(|error| error.to_string())?;
        let mut rng = StdRng::seed_from_u64(seed ^ 0x6b65_7973);
        let keys = Keys { echoes: rng.random(), seal: rng.random(), fragments: rng.random() };
        Ok(Memory { state, file, slots_at, keys })
    }

    pub(super) fn tables(&self) -> Tables {
        Tables { keys: self.keys, ..self.state.tables() }
    }

    /// Leaves the slot of an ident as somebody may who was stopped while writing it: with another client in it than the one that its
    /// seal is for, the neighbour.
    pub(super) fn tear(&self, address: u8, ident: u16) -> Result<(), String> {
        let at = self.slots_at + SLOT_BYTES * (u64::from(address) << 16 | u64::from(ident));
        let mut bytes = [0; 8];
        let torn = self.file.read_exact_at(&mut bytes, at).and_then(|()| {
            let identity = u64::from_ne_bytes(bytes) ^ u64::from(u32::from(Ipv4Addr::new(0, 0, 0, 1))) << 32;
            self.file.write_all_at(&identity.to_ne_bytes(), at)
        });
        torn.map_err(|error| error.to_string())
    }
}
