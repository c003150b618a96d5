//! Stops that the current proxy wants, and what the retired ones say to them.
//!
//! ```text
//!  wanted ─► each retired proxy is asked ─► all agree ─► the Machine's task ─► done, or called off
//!                 │ one objects, cannot be asked, breaks off or says nothing for so long
//!                 ▼
//!              refused, called off; asked again when the Machine was idle for its time once more
//! ```
//!
//! Only two things are consent: that very question was answered, or the process is known to be no more. Who agrees gives
//! the run no new work until that is called off. With its connection to the server it forgets what it has agreed to, but
//! lets nobody in before the next one has told everything; so it hears there what still stands ([`Consents::renewed`]).
//! What a session of the current proxy has wanted ends with that session.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use perch_proxy::control::{self, ToProxy};

use super::{ProxyPort, Which, lock};

/// A proxy that lives answers within milliseconds; a Machine that stays awake a little longer is no harm.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a Machine does not sleep that a retired proxy uses.
const USED_ELSEWHERE: &str = "connections of a former proxy use it";
/// Or one of which nobody knows whether it does.
const UNREACHED: &str = "a former proxy, which may use it, cannot be asked";
/// The same of one that was asked.
const SILENT: &str = "a former proxy, which may use it, has not answered";

/// A stop that the current proxy wants, and retired ones have to agree to.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) machine: String,
    pub(crate) run: u64,
    pub(crate) attempt: u64,
    pub(crate) reason: String,
    /// In which session it was wanted.
    pub(crate) session: u64,
    waits_for: BTreeSet<Which>,
    /// Why it stays awake.
    pub(crate) refused: Option<&'static str>,
}

/// What the retired proxies say.
#[derive(Debug)]
pub(crate) enum Answer {
    /// All that there is to say.
    Now(Asked),
    /// They were asked by this token, and have [`ANSWER_TIMEOUT`].
    Later(u64),
}

/// A stop under way to which all have agreed.
#[derive(Debug)]
struct Agreed {
    run: u64,
    /// In which session of the current proxy it was wanted.
    session: u64,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Consents {
    asked: BTreeMap<u64, Asked>,
    /// By Machine, until the stop is over.
    agreed: BTreeMap<String, Agreed>,
}

impl Consents {
    pub(super) fn tokens(&self) -> Vec<u64> {
        self.asked.keys().copied().collect()
    }

    /// A stop is over; its run.
    pub(super) fn end(&mut self, machine: &str) -> Option<u64> {
        self.agreed.remove(machine).map(|agreed| agreed.run)
    }

    /// What closes the runs again in one whose connection begins anew. Nobody waits for the answer: this token is no
    /// drain of the server's.
    pub(super) fn renewed(&self) -> Vec<ToProxy> {
        let drain = |(machine, agreed): (&String, &Agreed)| ToProxy::Drain {
            machine: machine.clone(),
            run: agreed.run,
            token: 0,
            timeout_ms: 0,
        };
        self.agreed.iter().map(drain).collect()
    }

    fn agree(&mut self, asked: &Asked) {
        let agreed = Agreed { run: asked.run, session: asked.session };
        self.agreed.insert(asked.machine.clone(), agreed);
    }

    fn take_if_answered(&mut self, token: u64) -> Option<Asked> {
        if self.asked.get(&token).is_none_or(|asked| !asked.waits_for.is_empty()) {
            return None;
        }
        let asked = self.asked.remove(&token)?;
        if asked.refused.is_none() {
            // In one step: a connection that begins now hears of it.
            self.agree(&asked);
        }
        Some(asked)
    }
}

impl ProxyPort {
    /// Asks the retired proxies whether a run may sleep. Whoever gets [`Answer::Later`] says when it is [`Self::overdue`].
    pub(crate) fn ask_retired(
        &self,
        (machine, run, attempt): (String, u64, u64),
        reason: String,
        session: u64,
    ) -> Answer {
        let token = self.next_token();
        let waits_for = BTreeSet::new();
        let mut asked = Asked { machine, run, attempt, reason, session, waits_for, refused: None };
        let message = ToProxy::MayStop { machine: asked.machine.clone(), run, token };
        // Before it is looked who they are: one that ends now is noticed by its question.
        let mut consents = lock(&self.consents);
        let retired = self.retired();
        if retired.is_empty() {
            consents.agree(&asked);
            return Answer::Now(asked);
        }
        let reached = retired.iter().all(|(_, wire)| wire.send(message.clone()));
        if !reached {
            drop(consents);
            asked.refused = Some(UNREACHED);
            self.refuse(&asked);
            return Answer::Now(asked);
        }
        asked.waits_for = retired.into_iter().map(|(which, _)| which).collect();
        consents.asked.insert(token, asked);
        Answer::Later(token)
    }

    /// A retired proxy has answered, or is no more.
    pub(super) fn answered(&self, which: Which, token: u64, in_flight: u64) -> Option<Asked> {
        let asked = {
            let mut consents = lock(&self.consents);
            if let Some(asked) = consents.asked.get_mut(&token)
                && asked.waits_for.remove(&which)
                && in_flight != 0
            {
                asked.refused = Some(USED_ELSEWHERE);
            }
            consents.take_if_answered(token)
        }?;
        if asked.refused.is_some() {
            self.refuse(&asked);
        }
        Some(asked)
    }

    /// Somebody has taken too long: what was asked comes back as refused.
    pub(crate) fn overdue(&self, token: u64) -> Option<Asked> {
        self.give_up(token, SILENT)
    }

    /// The connection to a retired proxy has ended, and the process lives or may: whatever it was asked or has agreed to
    /// just now does not happen.
    pub(crate) fn parted(&self) -> Vec<Asked> {
        let asked = lock(&self.consents).tokens();
        asked.into_iter().filter_map(|token| self.give_up(token, UNREACHED)).collect()
    }

    /// A stop that came over an ended session of the current proxy does not happen.
    pub(crate) fn stop_is_void(&self, machine: &str, session: u64) {
        let run = {
            let mut consents = lock(&self.consents);
            let is_its = |agreed: &&Agreed| agreed.session == session;
            consents.agreed.get(machine).filter(is_its).map(|agreed| agreed.run).inspect(|_| {
                consents.agreed.remove(machine);
            })
        };
        if let Some(run) = run {
            self.call_off(machine, run);
        }
    }

    /// Who wanted them has forgotten them with its connection.
    pub(super) fn call_off_questions(&self) {
        let asked = std::mem::take(&mut lock(&self.consents).asked);
        for asked in asked.into_values() {
            self.call_off(&asked.machine, asked.run);
        }
    }

    fn give_up(&self, token: u64, why: &'static str) -> Option<Asked> {
        let mut asked = lock(&self.consents).asked.remove(&token)?;
        asked.refused = Some(why);
        self.refuse(&asked);
        Some(asked)
    }

    /// Those who have closed the run open it again, and who wanted it to sleep hears why it does not.
    fn refuse(&self, asked: &Asked) {
        self.call_off(&asked.machine, asked.run);
        let reason = asked.refused.unwrap_or_default().to_owned();
        let (machine, attempt) = (asked.machine.clone(), asked.attempt);
        let outcome = control::StopOutcome::Refused { reason };
        self.current.send(ToProxy::StopDone { machine, attempt, outcome });
    }
}

#[cfg(test)]
mod tests {
    use perch_core::balancer::StopOutcome;
    use tokio::sync::mpsc;

    use super::super::ANSWERS_MAX;
    use super::*;
    use crate::server::seat::Post;

    const SESSION: u64 = 1;

    fn ask(port: &ProxyPort) -> Answer {
        port.ask_retired(("m".to_owned(), 3, 9), "idle".to_owned(), SESSION)
    }

    /// Of a stop about which somebody has to be asked.
    fn token(port: &ProxyPort) -> u64 {
        match ask(port) {
            Answer::Later(token) => token,
            Answer::Now(asked) => panic!("{asked:?}"),
        }
    }

    fn is_asked(told: &mut mpsc::Receiver<ToProxy>) -> bool {
        matches!(told.try_recv(), Ok(ToProxy::MayStop { run: 3, .. }))
    }

    fn is_called_off(told: &mut mpsc::Receiver<ToProxy>) -> bool {
        matches!(told.try_recv(), Ok(ToProxy::Undrain { run: 3, .. }))
    }

    fn is_refused(current: &mut mpsc::Receiver<ToProxy>, why: &str) {
        let refused = control::StopOutcome::Refused { reason: why.to_owned() };
        let answer = current.try_recv();
        let Ok(ToProxy::StopDone { attempt: 9, outcome, .. }) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(outcome, refused);
    }

    #[test]
    fn a_stop_waits_until_all_retired_proxies_agree() {
        let (port, _current) = ProxyPort::new();
        assert!(matches!(ask(&port), Answer::Now(Asked { refused: None, .. })), "nobody to ask");
        let (first, _wire, mut asked) = port.add_retired();
        let (second, _wire, mut also_asked) = port.add_retired();
        let token = token(&port);
        assert!(is_asked(&mut asked) && is_asked(&mut also_asked));
        assert!(port.drained(Which::Retired(first), token, 0).is_none());
        assert!(port.drained(Which::Retired(first), token, 0).is_none(), "it has one voice");
        let agreed = port.drained(Which::Retired(second), token, 0).expect("all have agreed");
        assert!(agreed.refused.is_none());
        assert_eq!((agreed.machine.as_str(), agreed.run, agreed.attempt), ("m", 3, 9));
        assert!(port.overdue(token).is_none(), "it was in time");
        // The lifecycle may refuse it all the same.
        let reason = String::new();
        port.stop_done("m", 9, StopOutcome::Refused { reason });
        assert!(is_called_off(&mut asked));
    }

    #[test]
    fn one_that_serves_somebody_there_keeps_the_machine_awake_and_the_others_go_on() {
        let (port, mut current) = ProxyPort::new();
        port.connected();
        let (first, _wire, _asked) = port.add_retired();
        let (second, _wire, mut also_asked) = port.add_retired();
        let token = token(&port);
        assert!(port.drained(Which::Retired(first), token, 1).is_none());
        let answered = port.drained(Which::Retired(second), token, 0).expect("all have answered");
        assert_eq!(answered.refused, Some(USED_ELSEWHERE));
        is_refused(&mut current, USED_ELSEWHERE);
        assert!(is_asked(&mut also_asked) && is_called_off(&mut also_asked));
    }

    #[test]
    fn a_retired_proxy_that_has_ended_objects_to_nothing() {
        let (port, _current) = ProxyPort::new();
        let (number, _wire, _asked) = port.add_retired();
        let token = token(&port);
        port.remove_retired(number);
        let stops = port.gone(Which::Retired(number));
        assert!(matches!(stops[..], [Asked { refused: None, .. }]), "{stops:?}");
        assert!(port.overdue(token).is_none());
    }

    #[test]
    fn a_broken_connection_to_one_that_lives_is_no_consent() {
        let (port, mut current) = ProxyPort::new();
        port.connected();
        let (first, _wire, _asked) = port.add_retired();
        let (_second, _wire, mut agreeing) = port.add_retired();
        let token = token(&port);
        assert!(is_asked(&mut agreeing));
        let stops = port.parted();
        assert!(matches!(stops[..], [Asked { refused: Some(_), .. }]), "{stops:?}");
        is_refused(&mut current, UNREACHED);
        assert!(is_called_off(&mut agreeing), "who has agreed lets callers in again");
        assert!(port.drained(Which::Retired(first), token, 0).is_none(), "that comes too late");
    }

    #[test]
    fn a_drain_goes_on_over_a_broken_connection_to_one_that_lives() {
        let (port, _current) = ProxyPort::new();
        let (number, _wire, _asked) = port.add_retired();
        let (mailbox, mut drained) = Post::of_test();
        port.drain("m", 3, 77, Duration::from_secs(5), mailbox);
        port.parted();
        assert!(drained.try_recv().is_err(), "nobody has said that it is empty");
        let told = port.outstanding(Which::Retired(number));
        let [ToProxy::Drain { token, run: 3, .. }] = told[..] else { panic!("{told:?}") };
        port.drained(Which::Retired(number), token, 0);
        assert!(drained.try_recv().is_ok());
    }

    #[test]
    fn a_drain_goes_on_over_a_broken_connection_to_the_current_one_that_lives() {
        let (port, _current) = ProxyPort::new();
        port.connected();
        let begin = |machine| {
            let (mailbox, drained) = Post::of_test();
            port.drain(machine, 3, 77, Duration::from_secs(5), mailbox);
            drained
        };
        let mut before = begin("before");
        port.current_parted();
        let mut meanwhile = begin("meanwhile");
        assert!(
            before.try_recv().is_err() && meanwhile.try_recv().is_err(),
            "somebody may be inside"
        );
        port.connected();
        let told = port.outstanding(Which::Current);
        let [ToProxy::Drain { token, .. }, ToProxy::Drain { .. }] = told[..] else {
            panic!("{told:?}")
        };
        port.drained(Which::Current, token, 0);
        assert!(before.try_recv().is_ok() && meanwhile.try_recv().is_err());
        assert!(port.gone(Which::Current).is_empty());
        assert!(meanwhile.try_recv().is_ok(), "nobody is left");
        assert!(begin("later").try_recv().is_ok(), "nobody is there");
    }

    #[test]
    fn a_drain_that_was_called_off_is_told_to_no_connection_that_begins_anew() {
        let (port, _current) = ProxyPort::new();
        port.connected();
        let (mailbox, mut drained) = Post::of_test();
        port.drain("off", 3, 77, Duration::from_secs(5), mailbox);
        let (other, _drained) = Post::of_test();
        port.drain("on", 3, 78, Duration::from_secs(5), other);
        port.current_parted();
        port.undrain("off", 3);
        port.undrain("on", 2);
        port.connected();
        let told = port.outstanding(Which::Current);
        assert!(
            matches!(&told[..], [ToProxy::Drain { machine, .. }] if machine == "on"),
            "{told:?}"
        );
        assert!(drained.try_recv().is_err(), "who called it off waits for nothing");
    }

    #[test]
    fn a_drain_that_took_too_long_is_told_to_no_connection_that_begins_anew() {
        let (port, _current) = ProxyPort::new();
        port.connected();
        port.current_parted();
        let (mailbox, mut drained) = Post::of_test();
        port.drain("m", 3, 77, Duration::from_secs(5), mailbox);
        port.end_drain("m", 3);
        port.connected();
        assert!(port.outstanding(Which::Current).is_empty(), "that run may be up again");
        assert!(drained.try_recv().is_err());
    }

    #[test]
    fn a_drain_that_took_too_long_is_void_where_it_waits_to_be_told() {
        let (port, _current) = ProxyPort::new();
        let (number, _wire, mut unheard) = port.add_retired();
        let (mailbox, _drained) = Post::of_test();
        port.drain("m", 3, 77, Duration::from_secs(5), mailbox);
        let asked = unheard.try_recv().expect("it waits until that proxy is reached");
        assert!(!port.is_void(&asked, Which::Retired(number)));
        port.end_drain("m", 3);
        assert!(port.is_void(&asked, Which::Retired(number)), "that run may be up again");
    }

    #[test]
    fn a_drain_waits_for_a_proxy_that_was_not_reached_yet_or_takes_no_more_questions() {
        let (port, _current) = ProxyPort::new();
        let begin = |token| {
            let (mailbox, drained) = Post::of_test();
            port.drain("m", 3, token, Duration::from_secs(5), mailbox);
            drained
        };
        // As a server that starts finds one that is slow.
        port.current_parted();
        let mut early = begin(1);
        port.connected();
        let filler = || ToProxy::Counts { token: 0 };
        while port.current.send(filler()) {}
        let mut late = begin(2);
        assert!(early.try_recv().is_err() && late.try_recv().is_err(), "somebody may be inside");
        assert_eq!(port.outstanding(Which::Current).len(), 2);
        assert!(port.gone(Which::Current).is_empty());
        assert!(early.try_recv().is_ok() && late.try_recv().is_ok(), "nobody is left");
    }

    #[test]
    fn one_that_cannot_hear_the_question_or_says_nothing_refuses() {
        let (port, mut current) = ProxyPort::new();
        port.connected();
        let (number, wire, mut asked) = port.add_retired();
        let token = token(&port);
        assert_eq!(port.overdue(token).and_then(|asked| asked.refused), Some(SILENT));
        is_refused(&mut current, SILENT);
        assert!(is_asked(&mut asked) && is_called_off(&mut asked));
        assert!(port.drained(Which::Retired(number), token, 0).is_none(), "that comes too late");
        let filler = || ToProxy::Counts { token: 0 };
        assert_eq!((0..=ANSWERS_MAX).filter(|_| wire.send(filler())).count(), ANSWERS_MAX);
        assert!(matches!(ask(&port), Answer::Now(Asked { refused: Some(UNREACHED), .. })));
        is_refused(&mut current, UNREACHED);
    }

    #[test]
    fn what_was_wanted_in_a_session_ends_with_it() {
        let (port, _current) = ProxyPort::new();
        let (number, _wire, mut asked) = port.add_retired();
        let unanswered = token(&port);
        assert!(is_asked(&mut asked));
        assert!(port.gone(Which::Current).is_empty(), "nobody refuses anything");
        assert!(is_called_off(&mut asked));
        assert!(port.drained(Which::Retired(number), unanswered, 0).is_none());
        // It came to an agreement, and the Machine's task hears of it too late.
        let token = token(&port);
        assert!(port.drained(Which::Retired(number), token, 0).is_some());
        assert!(is_asked(&mut asked));
        port.stop_is_void("m", SESSION + 1);
        assert!(asked.try_recv().is_err(), "another session's");
        port.stop_is_void("m", SESSION);
        assert!(is_called_off(&mut asked));
        assert!(port.outstanding(Which::Retired(number)).is_empty());
    }

    #[test]
    fn a_retired_proxy_that_connects_anew_hears_what_it_has_agreed_to() {
        let (port, _current) = ProxyPort::new();
        let (number, _wire, _asked) = port.add_retired();
        let token = token(&port);
        assert!(port.outstanding(Which::Retired(number)).is_empty(), "nothing is agreed yet");
        assert!(port.drained(Which::Retired(number), token, 0).is_some());
        let told = port.outstanding(Which::Retired(number));
        assert!(matches!(told[..], [ToProxy::Drain { run: 3, token: 0, .. }]), "{told:?}");
        port.stop_done("m", 9, StopOutcome::Suspended);
        assert!(port.outstanding(Which::Retired(number)).is_empty());
    }
}
