//! Places where a test may end a process: the steps of starting, stopping, suspending, paging out, resuming and updating.
//!
//! Code names the place it passes; whoever runs it may have armed a hook. Only builds with debug assertions have any of
//! this: in what users run [`pass`] is nothing. A test of hosts asks the binary for the list and walks all of it, so
//! that a place that is added here is tried, and one that is never passed fails.

/// What a test does so that a place is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum During {
    /// A stopped Machine is woken.
    Start,
    /// An idle Machine is stopped.
    Stop,
    /// An idle Machine is frozen.
    Suspend,
    /// A frozen Machine is woken.
    Resume,
    /// A running Machine gets a new config.
    Update,
    /// A stopped Machine is armed.
    Arm,
    /// An armed Machine is woken.
    StartArmed,
    /// A frozen Machine's memory goes to swap.
    PageOut,
    /// A Machine is woken whose memory is in swap.
    ReadBack,
    /// A shim is made ahead.
    Blank,
    /// A stopped Machine is woken by a shim that was made ahead.
    StartBlank,
    /// Another program takes the place of server and proxy.
    Upgrade,
}

impl During {
    /// For the list.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Update => "update",
            Self::Arm => "arm",
            Self::StartArmed => "start-armed",
            Self::PageOut => "page-out",
            Self::ReadBack => "read-back",
            Self::Blank => "blank",
            Self::StartBlank => "start-blank",
            Self::Upgrade => "upgrade",
        }
    }
}

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal during $during:ident,)*) => {
        /// A place; the first word of its name is the process that ends.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point { $($(#[$doc])* $point,)* }

        impl Point {
            /// All places.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)* }
            }

            /// When it is passed.
            pub fn during(self) -> During {
                match self { $(Self::$point => During::$during,)* }
            }
        }
    };
}

points! {
    /// A start is decided, nothing is done.
    ServerLaunchBegun = "server.launch-begun" during Start,
    /// The run's specification is on disk.
    ServerSpecWritten = "server.spec-written" during Start,
    /// The shim is a process.
    ServerShimSpawned = "server.shim-spawned" during Start,
    /// The program runs, and the Machine's task does not know.
    ServerLaunched = "server.launched" during Start,
    /// The proxy is about to be told.
    ServerStartDone = "server.start-done" during Start,
    /// The shim holds its lock.
    ShimLocked = "shim.locked" during Start,
    /// PID 1 is there, and nobody is told.
    ShimCreated = "shim.created" during Start,
    /// The server is told.
    ShimAnswered = "shim.answered" during Start,
    /// PID 1 is there.
    InitCreated = "init.created" during Start,
    /// The server is told.
    InitStarted = "init.started" during Start,
    /// The proxy is about to ask for a start.
    ProxyStartAsked = "proxy.start-asked" during Start,
    /// The proxy hears that the Machine is up.
    ProxyStartHeard = "proxy.start-heard" during Start,
    /// The proxy is about to ask for a stop.
    ProxyStopAsked = "proxy.stop-asked" during Stop,
    /// The server has heard of it.
    ServerStopHeard = "server.stop-heard" during Stop,
    /// It is durable.
    ServerStopSaved = "server.stop-saved" during Stop,
    /// The program has its signal.
    ServerSignalSent = "server.signal-sent" during Stop,
    /// PID 1 has passed the signal on, or not.
    InitSignalled = "init.signalled" during Stop,
    /// All of the run has ended, which is written nowhere.
    ShimEnded = "shim.ended" during Stop,
    /// Its end is on disk, its cgroups are still there.
    ShimRecorded = "shim.recorded" during Stop,
    /// The server has read its end.
    ServerExited = "server.exited" during Stop,
    /// The proxy hears of it.
    ProxyStopHeard = "proxy.stop-heard" during Stop,
    /// A freeze is about to begin.
    ServerFreezeBegun = "server.freeze-begun" during Suspend,
    /// All is frozen, which is written nowhere.
    ServerFrozen = "server.frozen" during Suspend,
    /// PID 1, frozen.
    InitFrozen = "init.frozen" during Suspend,
    /// The proxy is about to thaw.
    ProxyThawBegun = "proxy.thaw-begun" during Resume,
    /// It has, and the server does not know.
    ProxyThawed = "proxy.thawed" during Resume,
    /// A thaw is about to begin.
    ServerThawBegun = "server.thaw-begun" during Resume,
    /// It is done, and nobody is told.
    ServerThawed = "server.thawed" during Resume,
    /// PID 1, just thawed.
    InitThawed = "init.thawed" during Resume,
    /// The new config is durable, the Machine does not know.
    ServerUpdateSaved = "server.update-saved" during Update,
    /// The old run has ended, the new one has not begun.
    ServerReplacing = "server.replacing" during Update,
    /// The server has ended its work, and nobody has taken its place.
    ServerGivenUp = "server.given-up" during Upgrade,
    /// The next one is a process.
    ServerFollowed = "server.followed" during Upgrade,
    /// It serves, and the former one does not know.
    ServerSucceeds = "server.succeeds" during Upgrade,
    /// The proxy's record has its other name, its socket has not.
    ServerProxyRenamed = "server.proxy-renamed" during Upgrade,
    /// Its socket, too; its successor is no process.
    ServerProxyRetired = "server.proxy-retired" during Upgrade,
    /// Its successor serves, and it does not know.
    ServerProxyFollowed = "server.proxy-followed" during Upgrade,
    /// It hears of it.
    ProxyRetires = "proxy.retires" during Upgrade,
    /// Arming is decided, nothing is done.
    ServerArmBegun = "server.arm-begun" during Arm,
    /// The shim that is to wait is a process.
    ServerArmSpawned = "server.arm-spawned" during Arm,
    /// The server knows that it waits.
    ServerArmed = "server.armed" during Arm,
    /// The shim that is to wait holds its lock.
    ShimArming = "shim.arming" during Arm,
    /// It waits, and the server is told.
    ShimArmed = "shim.armed" during Arm,
    /// PID 1 waits at its gate.
    InitArmed = "init.armed" during Arm,
    /// The files tell of the new run, and the shim does not know.
    ServerGateReady = "server.gate-ready" during StartArmed,
    /// The shim is told.
    ServerGateOpened = "server.gate-opened" during StartArmed,
    /// The shim holds the lock of a run, and PID 1 is not told.
    ShimGateHeard = "shim.gate-heard" during StartArmed,
    /// PID 1 is told.
    ShimGateOpened = "shim.gate-opened" during StartArmed,
    /// The same.
    InitGateOpened = "init.gate-opened" during StartArmed,
    /// What a sleeper had is on disk, nothing about it is changed.
    ServerYieldSaved = "server.yield-saved" during PageOut,
    /// It is among the first that the kernel kills; its own limit of swap holds.
    ServerYieldRanked = "server.yield-ranked" during PageOut,
    /// That limit is lifted.
    ServerYielded = "server.yielded" during PageOut,
    /// A part of its memory is in swap.
    ServerChunkOut = "server.chunk-out" during PageOut,
    /// PID 1, then.
    InitChunkOut = "init.chunk-out" during PageOut,
    /// On v1: its limit of memory is what it uses, so that a part of that is in swap alone.
    ReclaimLowered = "reclaim.lowered" during PageOut,
    /// The same where no limit is needed for it, or it is as it was.
    ServerRoomMade = "server.room-made" during PageOut,
    /// All of it is in swap, and nobody is told.
    ServerPagedOut = "server.paged-out" during PageOut,
    /// It runs, with a sleeper's rank and limit.
    ServerKeepBegun = "server.keep-begun" during ReadBack,
    /// It runs and has its rank back; the limit is still lifted.
    ServerKeepRanked = "server.keep-ranked" during ReadBack,
    /// It is as it was, and the disk says otherwise.
    ServerKeepLimited = "server.keep-limited" during ReadBack,
    /// A part of its memory is read back.
    ServerChunkBack = "server.chunk-back" during ReadBack,
    /// PID 1, then.
    InitChunkBack = "init.chunk-back" during ReadBack,
    /// The shim that is to wait for a Machine is a process.
    ServerBlankSpawned = "server.blank-spawned" during Blank,
    /// It waits, and the server is told.
    ShimBlank = "shim.blank" during Blank,
    /// It is told which Machine.
    ServerBlankTaken = "server.blank-taken" during StartBlank,
    /// It knows, and holds no lock.
    ShimBlankOrdered = "shim.blank-ordered" during StartBlank,
    /// The cgroups have the Machine's name.
    ShimBlankNamed = "shim.blank-named" during StartBlank,
    /// The same; who ends is in them.
    ParkedNamed = "parked.named" during StartBlank,
    /// PID 1 is there, without its limits.
    ShimBlankBorn = "shim.blank-born" during StartBlank,
}

/// What a hook is told: the place, and the process that is to end if it is not this one.
pub type Hook = fn(Point, Option<i32>);

#[cfg(debug_assertions)]
static HOOK: std::sync::OnceLock<Hook> = std::sync::OnceLock::new();

/// Arms the places, once for the process. Nothing without debug assertions.
pub fn arm(hook: Hook) {
    #[cfg(debug_assertions)]
    HOOK.set(hook).ok();
    #[cfg(not(debug_assertions))]
    let _: Hook = hook;
}

/// This process passes a place.
#[inline]
pub fn pass(point: Point) {
    pass_of(point, None);
}

/// The process with this number passes a place.
#[inline]
pub fn pass_by(point: Point, pid: i32) {
    pass_of(point, Some(pid));
}

#[inline]
fn pass_of(point: Point, pid: Option<i32>) {
    #[cfg(debug_assertions)]
    if let Some(hook) = HOOK.get() {
        hook(point, pid);
    }
    #[cfg(not(debug_assertions))]
    let _: (Point, Option<i32>) = (point, pid);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_say_which_process_ends() {
        let names: std::collections::BTreeSet<_> = Point::ALL.iter().map(|it| it.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        for name in names {
            let process = name.split_once('.').map(|(process, _)| process);
            assert!(
                matches!(
                    process,
                    Some("server" | "proxy" | "shim" | "parked" | "init" | "reclaim")
                ),
                "{name}"
            );
        }
    }
}
