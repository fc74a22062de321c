//! Deliberate faults, to prove that the simulator (`tests/simulation/`) sees them: each is let loose alone, and must be caught. A
//! checker that has never caught anything proves nothing.
//!
//! They exist where debug assertions do. In a release build nobody can let one loose, the compiler knows it, and nothing is left
//! of them.
//!
//! Rejected: faults made by what surrounds the gateway (packets changed on their way). The checker would then prove that it sees
//! changed packets, not that it sees a gateway that is wrong. And patches to the source: nobody keeps them in step with it.

/// One fault. Each stands at the line that it breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Canary {
    /// A reply goes to the neighbour of the client that asked.
    WrongClient,
    /// An ident is another's at once: no hold-down.
    StaleIdent,
    /// A mapping's use is not noted: it ends while it is used.
    ForgottenUse,
    /// A client may have any number of mappings.
    NoLimit,
    /// Nobody is charged for packets.
    NoShare,
    /// A drop is not counted.
    LostCounter,
    /// A reply is dropped as if it had not been asked for.
    LostReply,
    /// A buffer is never given back.
    LostBuffer,
    /// A matched echo stays outstanding.
    DoubleDelivery,
    /// A reply may come from anybody.
    WeakRemote,
    /// A reply may have any sequence.
    WeakSequence,
    /// A reply may come at any time.
    NeverLate,
    /// A request that could not be sent stays outstanding.
    NotWithdrawn,
    /// An error about anything at all is told.
    WeakQuote,
    /// An error uses its echo up.
    ErrorUsesUp,
    /// What stands behind a packet in its buffer leaves with it.
    LeakedByte,
    /// A damaged payload gets a right checksum.
    HiddenDamage,
    /// Two clients' fragments leave under one identification.
    SharedIdentification,
    /// Anybody is a client.
    AnySource,
    /// Anything may be pinged.
    AnyRemote,
    /// What falls through is changed.
    ChangedPassing,
    /// New mappings are made on an address that drains.
    NeverDrained,
    /// A slot that does not fit its seal is believed.
    BrokenSeal,
    /// A request that may leave does not, and the drop has a name.
    LostRequest,
    /// Clients have half of their shares.
    TooStrict,
    /// What follows the first fragment of a request goes back to the TUN.
    IntoTheTun,
    /// What falls through is dropped, and the drop has a name.
    LostPassing,
    /// What is handed over to another worker is lost, and the drop has a name.
    LostParcel,
    /// No fragment waits for the first one, and the drop has a name.
    NoPatience,
    /// A client is told of any number of errors.
    EndlessErrors,
    /// What has DF is cut all the same.
    CutsAnything,
}

impl Canary {
    /// All of them.
    pub const ALL: [Canary; 31] = [
        Canary::WrongClient,
        Canary::StaleIdent,
        Canary::ForgottenUse,
        Canary::NoLimit,
        Canary::NoShare,
        Canary::LostCounter,
        Canary::LostReply,
        Canary::LostBuffer,
        Canary::DoubleDelivery,
        Canary::WeakRemote,
        Canary::WeakSequence,
        Canary::NeverLate,
        Canary::NotWithdrawn,
        Canary::WeakQuote,
        Canary::ErrorUsesUp,
        Canary::LeakedByte,
        Canary::HiddenDamage,
        Canary::SharedIdentification,
        Canary::AnySource,
        Canary::AnyRemote,
        Canary::ChangedPassing,
        Canary::NeverDrained,
        Canary::BrokenSeal,
        Canary::LostRequest,
        Canary::TooStrict,
        Canary::IntoTheTun,
        Canary::LostPassing,
        Canary::LostParcel,
        Canary::NoPatience,
        Canary::EndlessErrors,
        Canary::CutsAnything,
    ];
}

#[cfg(debug_assertions)]
thread_local! {
    static LOOSE: std::cell::Cell<Option<Canary>> = const { std::cell::Cell::new(None) };
}

/// Lets one loose on this thread, or none.
#[cfg(debug_assertions)]
pub fn let_loose(canary: Option<Canary>) {
    LOOSE.set(canary);
}

/// Whether it is loose on this thread. Never, without debug assertions.
#[inline(always)]
pub(crate) fn is_loose(canary: Canary) -> bool {
    #[cfg(debug_assertions)]
    return LOOSE.get() == Some(canary);
    #[cfg(not(debug_assertions))]
    {
        let _ = canary;
        false
    }
}
