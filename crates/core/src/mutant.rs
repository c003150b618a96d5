//! Planted bugs for `tests/sim`: each switch breaks one rule, and the simulation must notice.
//!
//! Production code passes [`Mutant::None`]; a comparison of one byte is all that it costs.

/// One planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The real behaviour.
    None,
    /// A Machine is chosen from loads that are old, and counted without looking again.
    ChooseAndCountApart,
    /// A Machine is asked to stop while new requests may still enter.
    VictimNotClosed,
    /// `min_machines_running` has no effect.
    FloorIgnored,
    /// `excess = running - over` instead of `running - (over + 1)`.
    ExcessOffByOne,
    /// The end of a request does not restart the idle clock.
    IdleClockNotReset,
    /// A request that does not count restarts the idle clock.
    IdleClockResetByOwnCall,
    /// A Machine that is starting is started again.
    StartIssuedTwice,
    /// Answers to abandoned attempts are believed.
    LateCompletionAccepted,
    /// One failed start fails all who wait.
    StartFailureDropsQueue,
    /// Who waits at `hard_limit` is let in without looking at it.
    HardLimitIgnoredOnRelease,
    /// When the last waiting caller leaves, the start is forgotten.
    DisconnectCancelsStart,
    /// A drain that ran out of time stops the Machine with load on it.
    DrainCutsLoad,
    /// A wake during an update launches the config from before.
    WakeDuringDeployRunsOldConfig,
    /// Finding a running Machine after a crash counts as one more run.
    AdoptionCountsAsStart,
    /// Excess is computed over all regions.
    OtherRegionsLoadCounted,
    /// The timer is not renewed when load ends.
    TimerLost,
    /// Starts of several apps exceed the host's limit.
    HostLimitIgnored,
    /// The slot of an answered start is not free again.
    StartSlotLeaked,
    /// A Machine that is on its way to its end is woken by a caller.
    DestroyedMachineStarted,
    /// Who waits for an app that is destroyed waits on.
    CallersOfDestroyedAppForgotten,
    /// A Machine is called started while it is still frozen.
    ResumeDoesNotThaw,
    /// The answer to a freeze that was called off is believed.
    LateFreezeAccepted,
    /// After a thaw of our own, old news of the server is believed.
    ThawForgotten,
    /// A connection whose caller waits for an answer is taken for idle.
    OwedIsIdle,
    /// A connection that goes on does not wake its Machine.
    RecallIgnored,
    /// Where resting connections have all places, who waits counts on room.
    RestingTakesNoPlace,
    /// A heartbeat restarts the idle clock.
    HeartbeatIsUse,
    /// On a connection with heartbeats all that is small is one, whenever it comes.
    RhythmIgnored,
    /// A heartbeat that the Machine leads restarts the idle clock.
    PingIsUse,
    /// Who answers a Machine's heartbeat waits for an answer.
    PongIsOwed,
    /// Who wants certain Machines is let into any.
    TargetIgnored,
    /// Who waits for one Machine is let into another that has room.
    AimedAdmittedElsewhere,
    /// Who waits for one Machine does not wake it.
    AimedDemandIgnored,
    /// Who waits for a Machine that will never take them is not told.
    AimedForgotten,
    /// Who waits for anybody always comes before who waits for one Machine.
    AimedStarved,
    /// Who waits for one Machine and is of its pool restarts the idle clock.
    AimedOwnCallIsUse,
    /// A Machine gets callers although its check does not pass.
    UnfitServes,
    /// A Machine whose check does not pass counts as one that takes callers.
    UnfitIsCapacity,
    /// What was found of a run is believed of the next.
    FormerHealthBelieved,
    /// A Machine is put to sleep under those who wait for it to pass.
    AwaitedSleeps,
    /// The end of the connection to a proxy that lives is taken for its own.
    BrokenLinkIsEnd,
    /// Who begins to wait while that connection is broken waits for nobody.
    PartedIsNotAwaited,
    /// The next connection does not begin with what is still waited for.
    DrainNotToldAgain,
    /// It does with what nobody waits for any more.
    DrainNeverForgotten,
    /// A stop that a crash interrupted is finished without a drain.
    AdoptionCutsDrain,
}

impl Mutant {
    /// All planted bugs: those of the issue in its order, then what several apps, their ends,
    /// connections that rest, aims, health, broken links and interrupted stops added.
    pub const ALL: [Self; 45] = [
        Self::ChooseAndCountApart,
        Self::VictimNotClosed,
        Self::FloorIgnored,
        Self::ExcessOffByOne,
        Self::IdleClockNotReset,
        Self::IdleClockResetByOwnCall,
        Self::StartIssuedTwice,
        Self::LateCompletionAccepted,
        Self::StartFailureDropsQueue,
        Self::HardLimitIgnoredOnRelease,
        Self::DisconnectCancelsStart,
        Self::DrainCutsLoad,
        Self::WakeDuringDeployRunsOldConfig,
        Self::AdoptionCountsAsStart,
        Self::OtherRegionsLoadCounted,
        Self::TimerLost,
        Self::HostLimitIgnored,
        Self::StartSlotLeaked,
        Self::DestroyedMachineStarted,
        Self::CallersOfDestroyedAppForgotten,
        Self::ResumeDoesNotThaw,
        Self::LateFreezeAccepted,
        Self::ThawForgotten,
        Self::OwedIsIdle,
        Self::RecallIgnored,
        Self::RestingTakesNoPlace,
        Self::HeartbeatIsUse,
        Self::RhythmIgnored,
        Self::PingIsUse,
        Self::PongIsOwed,
        Self::TargetIgnored,
        Self::AimedAdmittedElsewhere,
        Self::AimedDemandIgnored,
        Self::AimedForgotten,
        Self::AimedStarved,
        Self::AimedOwnCallIsUse,
        Self::UnfitServes,
        Self::UnfitIsCapacity,
        Self::FormerHealthBelieved,
        Self::AwaitedSleeps,
        Self::BrokenLinkIsEnd,
        Self::PartedIsNotAwaited,
        Self::DrainNotToldAgain,
        Self::DrainNeverForgotten,
        Self::AdoptionCutsDrain,
    ];
}
