//! What was done to Perch and when, and which failures that excuses.
//!
//! A failure is excused only if its request was under way inside a proxy that was killed: begun before that was gone, and cut by
//! its end. Connections that are one with a run of the program (raw TCP, WebSockets) end when a deploy replaces that; a
//! message that crosses this end is counted by itself. Everything else that fails is a fault.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A caller notices the end of a connection so late at most, on a machine that is busy.
const NOTICE_MAX: Duration = Duration::from_secs(2);

/// Something that is done to Perch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Deploy,
    Upgrade,
    Restart,
    KillServer,
    KillProxy,
    KillBoth,
}

impl Kind {
    pub(super) const ALL: [Self; 6] = [
        Self::Deploy,
        Self::Upgrade,
        Self::Restart,
        Self::KillServer,
        Self::KillProxy,
        Self::KillBoth,
    ];

    /// As it is said on the command line and printed.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::Upgrade => "upgrade",
            Self::Restart => "restart",
            Self::KillServer => "kill-server",
            Self::KillProxy => "kill-proxy",
            Self::KillBoth => "kill-both",
        }
    }

    fn kills_a_proxy(self) -> bool {
        matches!(self, Self::KillProxy | Self::KillBoth)
    }

    /// Whether calls of the API under way may fail by it.
    pub(super) fn ends_the_server(self) -> bool {
        !matches!(self, Self::Deploy | Self::KillProxy)
    }
}

/// One of them.
#[derive(Debug, Clone, Copy)]
struct Deed {
    kind: Kind,
    /// Whose, of a deploy.
    app: Option<usize>,
    from: Instant,
    /// When the proxy that is killed was gone, where that is before the end.
    gone: Option<Instant>,
    /// Not while it goes on.
    until: Option<Instant>,
}

/// All of them, for those who do and those who call.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Vec<Deed>>);

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    /// The connection was reset, or ended without an answer.
    Cut,
    /// A WebSocket was told that its Machine goes away.
    GoingAway,
    /// In any other way.
    Otherwise,
}

/// What a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was in flight inside what was killed.
    Excused(Kind),
    /// It crossed the planned end of its connection.
    Crossed(Kind),
    /// It must not be.
    Fault,
}

/// A request that failed just now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) app: usize,
    /// Its connection is one with a run of the program.
    pub(super) ends_with_its_program: bool,
    pub(super) begun: Instant,
    pub(super) ended: Instant,
}

/// A deed that goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ongoing(usize);

impl History {
    fn with<T>(&self, work: impl FnOnce(&mut Vec<Deed>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes down what will be done next.
    pub(super) fn begin(&self, kind: Kind, app: Option<usize>) -> Ongoing {
        self.with(|deeds| {
            deeds.push(Deed { kind, app, from: Instant::now(), gone: None, until: None });
            Ongoing(deeds.len() - 1)
        })
    }

    /// Whom it kills is gone: nobody is cut by what comes now.
    pub(super) fn gone(&self, Ongoing(place): Ongoing) {
        self.with(|deeds| deeds[place].gone = Some(Instant::now()));
    }

    /// It is done.
    pub(super) fn end(&self, Ongoing(place): Ongoing) {
        self.with(|deeds| deeds[place].until = Some(Instant::now()));
    }

    /// Whether somebody is to blame for a failure.
    pub(super) fn judge(&self, request: Request, failed: Failed) -> Verdict {
        self.with(|deeds| {
            if failed == Failed::Cut
                && let Some(deed) = deeds.iter().rfind(|deed| deed.cut(request))
            {
                return Verdict::Excused(deed.kind);
            }
            let replaced = |deed: &&Deed| deed.replaces(request.app) && deed.meets(request);
            if request.ends_with_its_program
                && failed != Failed::Otherwise
                && deeds.iter().rfind(replaced).is_some()
            {
                return Verdict::Crossed(Kind::Deploy);
            }
            Verdict::Fault
        })
    }

    /// What may have lost a datagram that was sent at `request.begun` and has no answer yet.
    pub(super) fn lost(&self, request: Request) -> Option<Kind> {
        let to_blame = |deed: &&Deed| {
            (deed.kind.kills_a_proxy() || deed.replaces(request.app)) && deed.meets(request)
        };
        self.with(|deeds| deeds.iter().rfind(to_blame).map(|deed| deed.kind))
    }

    /// What may have ended a connection that was used last at `request.begun` and is found closed now.
    pub(super) fn ended(&self, request: Request) -> Option<Kind> {
        let to_blame = |deed: &&Deed| match deed.kind {
            Kind::KillProxy | Kind::KillBoth => deed.meets(request),
            Kind::Deploy => {
                request.ends_with_its_program && deed.replaces(request.app) && deed.meets(request)
            }
            Kind::Upgrade | Kind::Restart => {
                !request.ends_with_its_program && deed.from <= request.ended
            }
            Kind::KillServer => false,
        };
        self.with(|deeds| deeds.iter().rfind(to_blame).map(|deed| deed.kind))
    }

    /// Whether the app was deployed between these points in time.
    pub(super) fn deployed(&self, request: Request) -> bool {
        self.with(|deeds| {
            deeds.iter().any(|deed| deed.replaces(request.app) && deed.meets(request))
        })
    }

    /// Whether the app was ever deployed.
    pub(super) fn was_deployed(&self, app: usize) -> bool {
        self.with(|deeds| deeds.iter().any(|deed| deed.replaces(app)))
    }

    /// What ended a server since then.
    pub(super) fn server_ended_since(&self, since: Instant) -> Option<Kind> {
        let met = |deed: &&Deed| {
            deed.kind.ends_the_server() && deed.until.is_none_or(|until| since <= until)
        };
        self.with(|deeds| deeds.iter().rfind(met).map(|deed| deed.kind))
    }

    /// How often each was done, and the longest one's length.
    pub(super) fn sums(&self) -> Vec<(Kind, usize, Duration)> {
        let sum = |deeds: &[Deed], kind| {
            let of = deeds.iter().filter(|deed| deed.kind == kind);
            let lengths = of.filter_map(|deed| Some(deed.until? - deed.from));
            lengths.fold((kind, 0, Duration::ZERO), |(kind, count, longest), length| {
                (kind, count + 1, longest.max(length))
            })
        };
        self.with(|deeds| Kind::ALL.map(|kind| sum(deeds, kind)).into())
    }
}

impl Deed {
    fn replaces(&self, app: usize) -> bool {
        self.kind == Kind::Deploy && self.app == Some(app)
    }

    /// Whether both went on at some time, but for how late a caller notices.
    fn meets(&self, request: Request) -> bool {
        self.from <= request.ended
            && self.until.is_none_or(|until| request.begun <= until + NOTICE_MAX)
    }

    /// Whether the request was under way in the proxy that was killed, and ended by that.
    fn cut(&self, request: Request) -> bool {
        self.kind.kills_a_proxy()
            && self.from <= request.ended
            && self
                .until
                .is_none_or(|gone| request.begun <= gone && request.ended <= gone + NOTICE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// After a deed of this kind that took from 10 to 11 s, a request of app 1.
    fn judged(kind: Kind, [begun, ended]: [u32; 2], raw: bool, failed: Failed) -> Verdict {
        let start = Instant::now();
        let at = |second| start + SECOND * second;
        let app = (kind == Kind::Deploy).then_some(1);
        let deed = Deed { kind, app, from: at(10), gone: None, until: Some(at(11)) };
        let history = History(Mutex::new(vec![deed]));
        let request =
            |app| Request { app, ends_with_its_program: raw, begun: at(begun), ended: at(ended) };
        if kind == Kind::Deploy {
            assert_eq!(history.judge(request(2), failed), Verdict::Fault, "another app's");
        }
        history.judge(request(1), failed)
    }

    #[test]
    fn what_was_cut_by_the_end_of_a_killed_proxy_is_excused_and_nothing_else() {
        let judged = |times, failed| judged(Kind::KillProxy, times, false, failed);
        assert_eq!(judged([9, 11], Failed::Cut), Verdict::Excused(Kind::KillProxy));
        assert_eq!(judged([9, 11], Failed::Otherwise), Verdict::Fault);
        assert_eq!(judged([9, 9], Failed::Cut), Verdict::Fault, "before");
        assert_eq!(judged([12, 13], Failed::Cut), Verdict::Fault, "begun after");
        assert_eq!(judged([9, 20], Failed::Cut), Verdict::Fault, "long after");
    }

    #[test]
    fn nobody_is_cut_by_what_leaves_the_proxy_alone() {
        for kind in [Kind::Upgrade, Kind::Restart, Kind::KillServer, Kind::Deploy] {
            assert_eq!(judged(kind, [9, 11], false, Failed::Cut), Verdict::Fault, "{kind:?}");
        }
    }

    #[test]
    fn a_deploy_ends_connections_to_the_run_that_it_replaces() {
        let judged = |times, failed| judged(Kind::Deploy, times, true, failed);
        assert_eq!(judged([10, 11], Failed::Cut), Verdict::Crossed(Kind::Deploy));
        assert_eq!(judged([10, 11], Failed::GoingAway), Verdict::Crossed(Kind::Deploy));
        assert_eq!(judged([10, 11], Failed::Otherwise), Verdict::Fault);
        assert_eq!(judged([20, 21], Failed::Cut), Verdict::Fault);
    }
}
