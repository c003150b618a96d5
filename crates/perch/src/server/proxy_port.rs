//! What the server's tasks say to proxies: to the one that has the listeners, and to those that were *retired*, which
//! accept nobody any more and serve on whom they have.
//!
//! All of them hear every change and every answer: attempts of different proxies are different, so an answer means
//! something to one of them. Who wants a Machine empty waits for all. The proxy that has the listeners decides who sleeps,
//! and is let only if no retired one objects: each of them is asked first, and gives that run no new work from then on.
//! A retired proxy may wake, as it holds callers and connections that rest.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perch_core::balancer::{StartOutcome, StopOutcome};
use perch_proxy::control::{self, AppCounts, Live, ToProxy};
use tokio::sync::{Notify, mpsc, watch};

use super::machine::Command as MachineCommand;
use super::questions::Questions;
use super::seat::Post;
use super::world::lock;

/// Answers that wait for a proxy; they are few, because each answers a question of its own.
const ANSWERS: usize = 4_096;

/// Why a Machine does not sleep that a retired proxy uses.
pub(crate) const USED_ELSEWHERE: &str = "connections of a former proxy use it";

/// Which of the proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Which {
    /// The one that has the listeners.
    Current,
    /// A retired one, by its number.
    Retired(u64),
}

/// The way to one proxy.
#[derive(Debug)]
pub(crate) struct Wire {
    answers: mpsc::Sender<ToProxy>,
    changed: Mutex<BTreeSet<String>>,
    settings_changed: AtomicBool,
    pub(crate) wake: Notify,
    /// Whether it may carry traffic that the server has to wait for.
    connected: AtomicBool,
}

impl Wire {
    fn new() -> (Arc<Self>, mpsc::Receiver<ToProxy>) {
        let (answers, receiver) = mpsc::channel(ANSWERS);
        let wire = Self {
            answers,
            changed: Mutex::default(),
            settings_changed: AtomicBool::new(false),
            wake: Notify::new(),
            connected: AtomicBool::new(false),
        };
        (Arc::new(wire), receiver)
    }

    /// False: nobody will hear it.
    fn send(&self, message: ToProxy) -> bool {
        if !self.connected.load(Ordering::Acquire) {
            return false;
        }
        let sent = self.answers.try_send(message).is_ok();
        if !sent {
            tracing::warn!("a proxy does not take its answers; one was dropped");
        }
        sent
    }

    /// The apps that have changed, since it was asked last.
    pub(crate) fn take_changed(&self) -> BTreeSet<String> {
        std::mem::take(&mut *lock(&self.changed))
    }

    /// Whether the settings have.
    pub(crate) fn take_settings_changed(&self) -> bool {
        self.settings_changed.swap(false, Ordering::AcqRel)
    }
}

/// A Machine that is to be empty before something is done to it.
#[derive(Debug)]
struct Draining {
    /// Whom to tell: the Machine's task and the lifecycle's own token.
    mailbox: Post,
    token: u64,
    message: ToProxy,
    waits_for: BTreeSet<Which>,
}

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
    /// Somebody uses the run by a retired proxy: it stays awake.
    pub(crate) refused: bool,
}

/// See the module's head. Never blocks.
#[derive(Debug)]
pub(crate) struct ProxyPort {
    current: Arc<Wire>,
    retired: Mutex<BTreeMap<u64, Arc<Wire>>>,
    drains: Mutex<BTreeMap<u64, Draining>>,
    asked: Mutex<BTreeMap<u64, Asked>>,
    /// The runs to whose stop retired proxies have agreed, until it is over.
    agreed: Mutex<BTreeMap<String, u64>>,
    /// Starts that were asked while there were several proxies, by Machine: all of them are answered at once.
    starts: Mutex<BTreeMap<String, BTreeSet<u64>>>,
    next_token: AtomicU64,
    /// Process id of the proxy that has the listeners, once it was told everything.
    serving: watch::Sender<Option<u32>>,
    /// The proxy that was started or found last; it never says itself who it is.
    process: Mutex<Option<Arc<OwnedFd>>>,
    /// The connection to it; what came over an earlier one is void.
    session: AtomicU64,
    /// Numbers for connections and for retired proxies.
    last_number: AtomicU64,
    replace: Notify,
    /// Connections that retired proxies had when they left the listeners.
    left: watch::Sender<Option<u64>>,
    pub(crate) questions: Questions,
}

impl ProxyPort {
    pub(crate) fn new() -> (Self, mpsc::Receiver<ToProxy>) {
        let (current, receiver) = Wire::new();
        let port = Self {
            current,
            retired: Mutex::default(),
            drains: Mutex::default(),
            asked: Mutex::default(),
            agreed: Mutex::default(),
            starts: Mutex::default(),
            next_token: AtomicU64::new(1),
            serving: watch::Sender::new(None),
            process: Mutex::default(),
            session: AtomicU64::new(0),
            last_number: AtomicU64::new(0),
            replace: Notify::new(),
            left: watch::Sender::new(None),
            questions: Questions::default(),
        };
        (port, receiver)
    }

    // ---- the proxies ----------------------------------------------------------------------------

    pub(crate) fn current(&self) -> &Arc<Wire> {
        &self.current
    }

    /// The proxy that is or was connected.
    pub(crate) fn process(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.process).clone()
    }

    pub(crate) fn set_process(&self, process: Option<OwnedFd>) {
        *lock(&self.process) = process.map(Arc::new);
    }

    /// The process id of the proxy that has the listeners and was told everything.
    pub(crate) fn serving(&self) -> watch::Receiver<Option<u32>> {
        self.serving.subscribe()
    }

    pub(crate) fn set_serving(&self, pid: u32) {
        self.serving.send_replace(Some(pid));
    }

    /// From now on drains are asked of the current proxy.
    pub(crate) fn connected(&self) {
        self.current.connected.store(true, Ordering::Release);
    }

    /// A connection to the current proxy begins; its number.
    pub(crate) fn begin_session(&self) -> u64 {
        let number = self.number();
        self.session.store(number, Ordering::Release);
        number
    }

    /// Whether a wish that came over that connection still counts.
    pub(crate) fn hears(&self, session: u64) -> bool {
        session == self.session.load(Ordering::Acquire)
            || lock(&self.retired).contains_key(&session)
    }

    fn number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Asks for another proxy in place of the one that has the listeners.
    pub(crate) fn replace(&self) {
        self.replace.notify_one();
    }

    pub(crate) async fn replaced(&self) {
        self.replace.notified().await;
    }

    pub(crate) fn note_left(&self, left: u64) {
        self.left.send_replace(Some(left));
    }

    /// It has ended; what it has said before stays true.
    pub(crate) fn note_none_left(&self) {
        self.left.send_if_modified(|left| {
            let unknown = left.is_none();
            *left = left.or(Some(0));
            unknown
        });
    }

    /// Waits for what a retired proxy says that it still has; at the longest so long.
    pub(crate) async fn left_by(&self, timeout: Duration) -> Option<u64> {
        let mut left = self.left.subscribe();
        let told = tokio::time::timeout(timeout, left.wait_for(Option::is_some)).await;
        told.ok()?.ok().and_then(|left| *left)
    }

    /// A retired proxy from now on; what it is told before it is connected waits.
    pub(crate) fn add_retired(&self) -> (u64, Arc<Wire>, mpsc::Receiver<ToProxy>) {
        let (wire, receiver) = Wire::new();
        wire.connected.store(true, Ordering::Release);
        let number = self.number();
        lock(&self.retired).insert(number, wire.clone());
        (number, wire, receiver)
    }

    /// The same for the one that had the listeners: who waits for it waits for the retired one.
    pub(crate) fn retire_current(&self) -> (u64, Arc<Wire>, mpsc::Receiver<ToProxy>) {
        self.current.connected.store(false, Ordering::Release);
        self.session.store(self.number(), Ordering::Release);
        let (number, wire, receiver) = self.add_retired();
        for draining in lock(&self.drains).values_mut() {
            if draining.waits_for.remove(&Which::Current) && wire.send(draining.message.clone()) {
                draining.waits_for.insert(Which::Retired(number));
            }
        }
        // It wanted them, and forgets them with its connection.
        for asked in std::mem::take(&mut *lock(&self.asked)).into_values() {
            self.call_off(&asked.machine, asked.run);
        }
        (number, wire, receiver)
    }

    pub(crate) fn remove_retired(&self, number: u64) {
        lock(&self.retired).remove(&number);
    }

    fn wires(&self) -> Vec<(Which, Arc<Wire>)> {
        let retired = lock(&self.retired);
        let retired = retired.iter().map(|(number, wire)| (Which::Retired(*number), wire.clone()));
        std::iter::once((Which::Current, self.current.clone())).chain(retired).collect()
    }

    fn retired(&self) -> Vec<(Which, Arc<Wire>)> {
        self.wires().split_off(1)
    }

    // ---- what is told ---------------------------------------------------------------------------

    /// What an app is awake for just now ([`Questions::live`]).
    pub(crate) async fn live(&self, app: &str, callers_max: u32) -> Option<Live> {
        self.questions.live(app, callers_max, |question| self.current.send(question)).await
    }

    /// What was served of all apps ([`Questions::counts`]).
    pub(crate) async fn counts(&self) -> Option<Vec<AppCounts>> {
        self.questions.counts(|question| self.current.send(question)).await
    }

    /// The proxies get this app's new view.
    pub(crate) fn app_changed(&self, app: String) {
        for (_, wire) in self.wires() {
            lock(&wire.changed).insert(app.clone());
            wire.wake.notify_one();
        }
    }

    /// The proxies get the networks anew.
    pub(crate) fn networks_changed(&self) {
        for (_, wire) in self.wires() {
            wire.settings_changed.store(true, Ordering::Release);
            wire.wake.notify_one();
        }
    }

    pub(crate) fn drain(
        &self,
        machine: &str,
        run: u64,
        token: u64,
        timeout: Duration,
        mailbox: Post,
    ) {
        let own = self.next_token.fetch_add(1, Ordering::Relaxed);
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let message = ToProxy::Drain { machine: machine.to_owned(), run, token: own, timeout_ms };
        {
            let wires = self.wires();
            // Held meanwhile, so that no answer is faster than the question is written down.
            let mut drains = lock(&self.drains);
            let sent = wires.into_iter().filter(|(_, wire)| wire.send(message.clone()));
            let waits_for: BTreeSet<Which> = sent.map(|(which, _)| which).collect();
            drains.insert(own, Draining { mailbox, token, message, waits_for });
        }
        self.end_drain_if_over(own);
    }

    pub(crate) fn undrain(&self, machine: &str, run: u64) {
        self.tell_all(&ToProxy::Undrain { machine: machine.to_owned(), run });
    }

    /// Remembers a start that was asked while others may ask for the same one.
    pub(crate) fn start_asked(&self, machine: &str, attempt: u64) {
        if !lock(&self.retired).is_empty() {
            lock(&self.starts).entry(machine.to_owned()).or_default().insert(attempt);
        }
    }

    pub(crate) fn start_done(&self, machine: &str, attempt: u64, outcome: StartOutcome) {
        let outcome = match outcome {
            StartOutcome::Started { run } => control::StartOutcome::Started { run },
            StartOutcome::Failed { reason } => control::StartOutcome::Failed { reason },
            StartOutcome::Refused { reason } => control::StartOutcome::Refused { reason },
        };
        let mut attempts = lock(&self.starts).remove(machine).unwrap_or_default();
        attempts.insert(attempt);
        for attempt in attempts {
            let (machine, outcome) = (machine.to_owned(), outcome.clone());
            self.tell_all(&ToProxy::StartDone { machine, attempt, outcome });
        }
    }

    pub(crate) fn stop_done(&self, machine: &str, attempt: u64, outcome: StopOutcome) {
        let agreed = lock(&self.agreed).remove(machine);
        let outcome = match outcome {
            StopOutcome::Stopped => control::StopOutcome::Stopped,
            StopOutcome::Suspended => control::StopOutcome::Suspended,
            StopOutcome::Refused { reason } => {
                if let Some(run) = agreed {
                    self.call_off(machine, run);
                }
                control::StopOutcome::Refused { reason }
            }
        };
        self.tell_all(&ToProxy::StopDone { machine: machine.to_owned(), attempt, outcome });
    }

    /// The retired ones give that run work again.
    fn call_off(&self, machine: &str, run: u64) {
        for (_, wire) in self.retired() {
            wire.send(ToProxy::Undrain { machine: machine.to_owned(), run });
        }
    }

    /// An answer to a proxy that is gone is dropped: its successor asks anew.
    fn tell_all(&self, message: &ToProxy) {
        for (_, wire) in self.wires() {
            wire.send(message.clone());
        }
    }

    /// A retired proxy wants a Machine to sleep, which it has closed for that: it opens it again.
    pub(crate) fn refuse_stop(&self, which: Which, machine: String, attempt: u64) {
        let Which::Retired(number) = which else { return };
        let reason = "another proxy decides who sleeps".to_owned();
        let outcome = control::StopOutcome::Refused { reason };
        if let Some(wire) = lock(&self.retired).get(&number) {
            wire.send(ToProxy::StopDone { machine, attempt, outcome });
        }
    }

    // ---- what is asked and heard ----------------------------------------------------------------

    /// Asks the retired proxies whether a run may sleep; at once what the current one wants, if there are none.
    pub(crate) fn ask_retired(
        &self,
        (machine, run, attempt): (String, u64, u64),
        reason: String,
        session: u64,
    ) -> Option<Asked> {
        let waits_for = BTreeSet::new();
        let mut asked = Asked { machine, run, attempt, reason, session, waits_for, refused: false };
        let retired = self.retired();
        if retired.is_empty() {
            return Some(asked);
        }
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let message = ToProxy::MayStop { machine: asked.machine.clone(), run, token };
        let mut all = lock(&self.asked);
        let sent = retired.into_iter().filter(|(_, wire)| wire.send(message.clone()));
        asked.waits_for = sent.map(|(which, _)| which).collect();
        if asked.waits_for.is_empty() {
            return Some(asked);
        }
        all.insert(token, asked);
        None
    }

    /// A proxy says what is in flight. A stop of which every retired one has said what it thinks comes back, to be done
    /// or written down.
    pub(crate) fn drained(&self, which: Which, token: u64, in_flight: u64) -> Option<Asked> {
        if let Some(draining) = lock(&self.drains).get_mut(&token) {
            draining.waits_for.remove(&which);
        }
        self.end_drain_if_over(token);
        if let Some(asked) = lock(&self.asked).get_mut(&token) {
            asked.waits_for.remove(&which);
            asked.refused |= in_flight != 0;
        }
        self.take_if_answered(token)
    }

    /// A proxy's connection has ended: it has nothing in flight that could be waited for. Stops of which only it had
    /// said nothing come back.
    pub(crate) fn gone(&self, which: Which) -> Vec<Asked> {
        if which == Which::Current {
            self.current.connected.store(false, Ordering::Release);
        }
        let drains: Vec<u64> = lock(&self.drains).keys().copied().collect();
        for token in drains {
            if let Some(draining) = lock(&self.drains).get_mut(&token) {
                draining.waits_for.remove(&which);
            }
            self.end_drain_if_over(token);
        }
        let asked: Vec<u64> = lock(&self.asked).keys().copied().collect();
        asked.into_iter().filter_map(|token| self.drained(which, token, 0)).collect()
    }

    fn end_drain_if_over(&self, own: u64) {
        let over = {
            let mut drains = lock(&self.drains);
            if drains.get(&own).is_none_or(|draining| !draining.waits_for.is_empty()) {
                return;
            }
            drains.remove(&own)
        };
        let Some(Draining { mailbox, token, .. }) = over else { return };
        // A full mailbox is no loss: the lifecycle's own deadline ends the drain.
        mailbox.try_send(MachineCommand::Drained { token }).ok();
    }

    fn take_if_answered(&self, token: u64) -> Option<Asked> {
        let asked = {
            let mut all = lock(&self.asked);
            if all.get(&token).is_none_or(|asked| !asked.waits_for.is_empty()) {
                return None;
            }
            all.remove(&token)?
        };
        if !asked.refused {
            lock(&self.agreed).insert(asked.machine.clone(), asked.run);
            return Some(asked);
        }
        self.call_off(&asked.machine, asked.run);
        let reason = USED_ELSEWHERE.to_owned();
        let (machine, attempt) = (asked.machine.clone(), asked.attempt);
        let outcome = control::StopOutcome::Refused { reason };
        self.current.send(ToProxy::StopDone { machine, attempt, outcome });
        Some(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(port: &ProxyPort) -> Option<Asked> {
        port.ask_retired(("m".to_owned(), 3, 9), "idle".to_owned(), 1)
    }

    fn token(asked: &mut mpsc::Receiver<ToProxy>) -> u64 {
        match asked.try_recv() {
            Ok(ToProxy::MayStop { token, run: 3, .. }) => token,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_stop_waits_until_all_retired_proxies_agree() {
        let (port, _current) = ProxyPort::new();
        assert!(stop(&port).is_some(), "there is nobody to ask");
        let (first, _wire, mut asked) = port.add_retired();
        let (second, _wire, mut also_asked) = port.add_retired();
        assert!(stop(&port).is_none());
        let token = token(&mut asked);
        assert!(matches!(also_asked.try_recv(), Ok(ToProxy::MayStop { .. })));
        assert!(port.drained(Which::Retired(first), token, 0).is_none());
        let agreed = port.drained(Which::Retired(second), token, 0).expect("all have agreed");
        assert!(!agreed.refused);
        assert_eq!((agreed.machine.as_str(), agreed.run, agreed.attempt), ("m", 3, 9));
        // The lifecycle may refuse it all the same.
        let reason = String::new();
        port.stop_done("m", 9, StopOutcome::Refused { reason });
        assert!(matches!(asked.try_recv(), Ok(ToProxy::Undrain { run: 3, .. })));
    }

    #[test]
    fn one_that_serves_somebody_there_keeps_the_machine_awake_and_the_others_go_on() {
        let (port, mut current) = ProxyPort::new();
        port.connected();
        let (first, _wire, mut asked) = port.add_retired();
        let (second, _wire, mut also_asked) = port.add_retired();
        assert!(stop(&port).is_none());
        let token = token(&mut asked);
        assert!(port.drained(Which::Retired(first), token, 1).is_none());
        let answered = port.drained(Which::Retired(second), token, 0).expect("all have answered");
        assert!(answered.refused);
        let refused = control::StopOutcome::Refused { reason: USED_ELSEWHERE.to_owned() };
        let answer = current.try_recv();
        assert!(
            matches!(&answer, Ok(ToProxy::StopDone { attempt: 9, outcome, .. }) if *outcome == refused),
            "{answer:?}"
        );
        assert!(also_asked.try_recv().is_ok(), "it was asked");
        assert!(matches!(also_asked.try_recv(), Ok(ToProxy::Undrain { run: 3, .. })));
    }

    #[test]
    fn a_retired_proxy_that_has_ended_objects_to_nothing() {
        let (port, _current) = ProxyPort::new();
        let (number, _wire, _asked) = port.add_retired();
        assert!(stop(&port).is_none());
        port.remove_retired(number);
        assert_eq!(port.gone(Which::Retired(number)).len(), 1);
    }

    #[tokio::test]
    async fn one_that_ended_before_it_was_heard_has_nobody_left() {
        let (port, _current) = ProxyPort::new();
        port.note_none_left();
        assert_eq!(port.left_by(Duration::from_secs(1)).await, Some(0));
        let (port, _current) = ProxyPort::new();
        port.note_left(7);
        port.note_none_left();
        assert_eq!(port.left_by(Duration::from_secs(1)).await, Some(7));
    }

    #[test]
    fn a_retired_proxy_that_wants_a_sleep_is_refused_and_not_left_waiting() {
        let (port, _current) = ProxyPort::new();
        let (number, _wire, mut told) = port.add_retired();
        port.refuse_stop(Which::Retired(number), "m".to_owned(), 4);
        let told = told.try_recv().expect("it is told");
        assert!(
            matches!(&told, ToProxy::StopDone { machine, attempt: 4, outcome: control::StopOutcome::Refused { .. } } if machine == "m"),
            "{told:?}"
        );
    }

    #[test]
    fn starts_that_several_proxies_have_asked_for_are_answered_together() {
        let (port, mut current) = ProxyPort::new();
        port.connected();
        let (_number, _wire, mut retired) = port.add_retired();
        port.start_asked("m", 5);
        port.start_asked("m", 7);
        port.start_done("m", 7, StartOutcome::Started { run: 1 });
        for told in [&mut current, &mut retired] {
            for wanted in [5, 7] {
                let answer = told.try_recv();
                assert!(
                    matches!(answer, Ok(ToProxy::StartDone { attempt, .. }) if attempt == wanted),
                    "{answer:?}"
                );
            }
        }
    }
}
