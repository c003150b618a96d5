//! What the server's tasks say to proxies: to the one that has the listeners, and to those that were *retired*, which
//! accept nobody any more and serve on whom they have.
//!
//! All of them hear every change and every answer: attempts of different proxies are different, so an answer means
//! something to one of them. Who wants a Machine empty waits for all. The proxy that has the listeners decides who sleeps,
//! and is let only if no retired one objects ([`consents`]). A retired proxy may wake, as it holds callers and connections
//! that rest.

mod consents;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perch_core::balancer::{StartOutcome, StopOutcome};
pub(crate) use perch_core::drains::Which;
use perch_core::drains::{Drain, Drains, Process};
use perch_proxy::control::{self, AppCounts, Live, ToProxy};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, watch};

use super::machine::Command as MachineCommand;
use super::questions::Questions;
use super::seat::Post;
use super::world::lock;
use consents::Consents;
pub(crate) use consents::{ANSWER_TIMEOUT, Answer, Asked};

/// Messages that wait for a proxy; they are few, because each answers a question of its own. One that does not take so
/// many is told everything anew, over another connection.
const ANSWERS_MAX: usize = 4_096;

/// The way to one proxy.
#[derive(Debug)]
pub(crate) struct Wire {
    answers: mpsc::Sender<ToProxy>,
    changed: Mutex<BTreeSet<String>>,
    settings_changed: AtomicBool,
    pub(crate) wake: Notify,
    /// Whether it may carry traffic that the server has to wait for.
    connected: AtomicBool,
    /// A message found no room. What comes after it means little without it: nothing more is told before a connection
    /// begins anew.
    overrun: watch::Sender<bool>,
}

impl Wire {
    fn new(answers_max: usize) -> (Arc<Self>, mpsc::Receiver<ToProxy>) {
        let (answers, receiver) = mpsc::channel(answers_max);
        let wire = Self {
            answers,
            changed: Mutex::default(),
            settings_changed: AtomicBool::new(false),
            wake: Notify::new(),
            connected: AtomicBool::new(false),
            overrun: watch::Sender::new(false),
        };
        (Arc::new(wire), receiver)
    }

    /// False: nobody will hear it.
    fn send(&self, message: ToProxy) -> bool {
        if !self.connected.load(Ordering::Acquire) || *self.overrun.borrow() {
            return false;
        }
        let sent = self.answers.try_send(message);
        if matches!(sent, Err(TrySendError::Full(_))) && !self.overrun.send_replace(true) {
            let limit = self.answers.max_capacity();
            tracing::warn!(
                limit,
                "a proxy does not take what it is told; the next connection to it tells it everything"
            );
        }
        sent.is_ok()
    }

    /// A connection has begun and told the state of everything. If there was no room for a message, those before it go too:
    /// the proxy has forgotten what it asked, and is told next what is still waited for ([`ProxyPort::outstanding`]).
    pub(crate) fn begin(&self, answers: &mut mpsc::Receiver<ToProxy>) {
        if *self.overrun.borrow() {
            while answers.try_recv().is_ok() {}
            self.overrun.send_replace(false);
        }
    }

    /// Returns when there was no room for a message.
    pub(crate) async fn overran(&self) {
        let mut overrun = self.overrun.subscribe();
        overrun.wait_for(|overrun| *overrun).await.expect("the sender lives as long as we do");
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

/// A proxy that has the listeners and was told everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Serving {
    /// Its process id.
    pub(crate) pid: u32,
    pub(crate) origin: Origin,
}

/// Who has started a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Origin {
    /// An earlier server.
    #[default]
    Former,
    /// This one.
    Own,
}

/// Whom to tell that a Machine is empty: its task, by the lifecycle's own token.
#[derive(Debug)]
struct Drainer {
    mailbox: Post,
    token: u64,
}

impl Drainer {
    fn tell(self) {
        // A full mailbox is no loss: the lifecycle's own deadline ends the drain.
        self.mailbox.try_send(MachineCommand::Drained { token: self.token }).ok();
    }
}

/// See the module's head. Never blocks.
#[derive(Debug)]
pub(crate) struct ProxyPort {
    current: Arc<Wire>,
    retired: Mutex<BTreeMap<u64, Arc<Wire>>>,
    /// Locked before `retired`, never after it. While it is locked no proxy becomes another kind of one.
    drains: Mutex<Drains<String, Drainer>>,
    /// Locked before `retired`, never after it.
    consents: Mutex<Consents>,
    /// Starts that were asked while there were several proxies, by Machine: all of them are answered at once.
    starts: Mutex<BTreeMap<String, BTreeSet<u64>>>,
    next_token: AtomicU64,
    serving: watch::Sender<Option<Serving>>,
    /// The proxy that was started or found last; it never says itself who it is.
    process: Mutex<Option<Arc<OwnedFd>>>,
    /// The connection to it; what came over an earlier one is void.
    session: AtomicU64,
    /// Numbers for connections and for retired proxies.
    last_number: AtomicU64,
    /// Messages that may wait for each proxy.
    answers_max: usize,
    /// The proxy, by its process id, in whose place another one is wanted.
    replace: watch::Sender<Option<u32>>,
    /// Connections that retired proxies had when they left the listeners, by their process ids.
    left: watch::Sender<BTreeMap<u32, u64>>,
    pub(crate) questions: Questions,
}

impl ProxyPort {
    pub(crate) fn new() -> (Self, mpsc::Receiver<ToProxy>) {
        Self::with_room_for(ANSWERS_MAX)
    }

    /// The same with so many messages that may wait for each proxy.
    pub(crate) fn with_room_for(answers_max: usize) -> (Self, mpsc::Receiver<ToProxy>) {
        let (current, receiver) = Wire::new(answers_max);
        let port = Self {
            current,
            retired: Mutex::default(),
            drains: Mutex::default(),
            consents: Mutex::default(),
            starts: Mutex::default(),
            next_token: AtomicU64::new(1),
            serving: watch::Sender::new(None),
            process: Mutex::default(),
            session: AtomicU64::new(0),
            last_number: AtomicU64::new(0),
            answers_max,
            replace: watch::Sender::new(None),
            left: watch::Sender::default(),
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

    /// The proxy that has the listeners and was told everything.
    pub(crate) fn serving(&self) -> watch::Receiver<Option<Serving>> {
        self.serving.subscribe()
    }

    pub(crate) fn set_serving(&self, serving: Serving) {
        self.serving.send_replace(Some(serving));
    }

    /// From now on drains are asked of the current proxy.
    pub(crate) fn connected(&self) {
        let mut drains = lock(&self.drains);
        drains.connected();
        self.current.connected.store(true, Ordering::Release);
    }

    /// There is no connection to the current proxy, any more or yet, and the process lives or may: it serves on whom it
    /// has, and hears at its next connection what is waited for.
    pub(crate) fn current_parted(&self) {
        self.part(Process::Lives);
    }

    fn part(&self, process: Process) {
        let over = {
            let mut drains = lock(&self.drains);
            self.current.connected.store(false, Ordering::Release);
            drains.parted(process)
        };
        over.into_iter().for_each(Drainer::tell);
        self.call_off_questions();
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

    fn next_token(&self) -> u64 {
        self.next_token.fetch_add(1, Ordering::Relaxed)
    }

    fn number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Asks for another proxy in place of this one, whenever it is connected. Any other that comes first stays.
    pub(crate) fn replace(&self, pid: u32) {
        self.replace.send_replace(Some(pid));
    }

    /// Waits until another proxy is wanted in place of this one, which the caller sees to.
    pub(crate) async fn replaced(&self, pid: u32) {
        let mut wanted = self.replace.subscribe();
        let heard = wanted.wait_for(|wanted| *wanted == Some(pid)).await.map(drop);
        heard.expect("the sender lives as long as we do");
        self.call_off_replacement(pid);
    }

    /// Whether nobody has begun to replace that proxy; then nobody will.
    pub(crate) fn call_off_replacement(&self, pid: u32) -> bool {
        self.replace.send_if_modified(|wanted| wanted.take_if(|wanted| *wanted == pid).is_some())
    }

    /// What a retired proxy had when it left the listeners.
    pub(crate) fn note_left(&self, pid: u32, left: u64) {
        self.left.send_modify(|all| {
            all.insert(pid, left);
        });
    }

    /// It has ended; what it has said before stays true.
    pub(crate) fn note_none_left(&self, pid: u32) {
        self.left.send_modify(|all| {
            all.entry(pid).or_insert(0);
        });
    }

    /// Waits for what a retired proxy says that it still has; at the longest so long.
    pub(crate) async fn left_by(&self, pid: u32, timeout: Duration) -> Option<u64> {
        let mut left = self.left.subscribe();
        let told = tokio::time::timeout(timeout, left.wait_for(|all| all.contains_key(&pid))).await;
        told.ok()?.ok().and_then(|all| all.get(&pid).copied())
    }

    /// A retired proxy from now on; what it is told before it is connected waits.
    pub(crate) fn add_retired(&self) -> (u64, Arc<Wire>, mpsc::Receiver<ToProxy>) {
        let (wire, receiver) = Wire::new(self.answers_max);
        wire.connected.store(true, Ordering::Release);
        let number = self.number();
        lock(&self.retired).insert(number, wire.clone());
        (number, wire, receiver)
    }

    /// The same for the one that had the listeners: who waits for it waits for the retired one.
    pub(crate) fn retire_current(&self) -> (u64, Arc<Wire>, mpsc::Receiver<ToProxy>) {
        let mut drains = lock(&self.drains);
        self.current.connected.store(false, Ordering::Release);
        self.session.store(self.number(), Ordering::Release);
        let (number, wire, receiver) = self.add_retired();
        // It hears of them when its connection begins anew.
        drains.retire(number);
        drop(drains);
        self.call_off_questions();
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
        let wires: BTreeMap<Which, Arc<Wire>> = self.wires().into_iter().collect();
        let send = |which, question| wires.get(&which).is_some_and(|wire| wire.send(question));
        self.questions.live(app, callers_max, wires.keys().copied().collect(), send).await
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
        let drain = Drain { machine: machine.to_owned(), run, token: self.next_token(), timeout };
        let over = {
            // Held meanwhile, so that no answer is faster than the question is written down.
            let mut drains = lock(&self.drains);
            self.tell_all(&question(&drain));
            let retired: Vec<u64> = lock(&self.retired).keys().copied().collect();
            drains.begin(drain, Drainer { mailbox, token }, retired)
        };
        over.into_iter().for_each(Drainer::tell);
    }

    /// Calls it off: nobody answers it any more, and no connection that begins anew is told of it.
    pub(crate) fn undrain(&self, machine: &str, run: u64) {
        let mut drains = lock(&self.drains);
        drains.forget(machine, run);
        self.tell_all(&ToProxy::Undrain { machine: machine.to_owned(), run });
    }

    /// What the Machine was to be empty for is done, whether that was answered or took too long.
    pub(crate) fn end_drain(&self, machine: &str, run: u64) {
        lock(&self.drains).forget(machine, run);
    }

    /// Whether nobody waits any more for what this asks of a proxy. It may have waited long until that one took it, and a
    /// Machine that is up again would be closed there.
    pub(crate) fn is_void(&self, message: &ToProxy, which: Which) -> bool {
        match message {
            ToProxy::Drain { token, .. } => !lock(&self.drains).awaits(which, *token),
            _ => false,
        }
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
        let agreed = lock(&self.consents).end(machine);
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

    /// An answer to a proxy that is gone is dropped: its successor asks anew. So does one that has not taken too many.
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

    // ---- what is heard --------------------------------------------------------------------------

    /// A proxy says what is in flight. A stop of which every retired one has said what it thinks comes back, to be done
    /// or written down.
    pub(crate) fn drained(&self, which: Which, token: u64, in_flight: u64) -> Option<Asked> {
        let over = lock(&self.drains).answered(which, token);
        over.into_iter().for_each(Drainer::tell);
        self.answered(which, token, in_flight)
    }

    /// A proxy is no more: it has nothing in flight that could be waited for. Stops of which only it had said nothing come
    /// back.
    pub(crate) fn gone(&self, which: Which) -> Vec<Asked> {
        match which {
            Which::Current => self.part(Process::Ended),
            Which::Retired(number) => {
                let over = lock(&self.drains).retired_ended(number);
                over.into_iter().for_each(Drainer::tell);
            }
        }
        let asked = lock(&self.consents).tokens();
        asked.into_iter().filter_map(|token| self.answered(which, token, 0)).collect()
    }

    /// What a proxy has to hear before it may let anybody in again, when its connection begins anew: what the server still
    /// waits for, and which runs are about to sleep because it has agreed. The current one asks for that itself.
    pub(crate) fn outstanding(&self, which: Which) -> Vec<ToProxy> {
        let agreed = match which {
            Which::Current => Vec::new(),
            Which::Retired(_) => lock(&self.consents).renewed(),
        };
        lock(&self.drains).outstanding(which).map(question).chain(agreed).collect()
    }
}

fn question(drain: &Drain<String>) -> ToProxy {
    let Drain { machine, run, token, timeout } = drain;
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    ToProxy::Drain { machine: machine.clone(), run: *run, token: *token, timeout_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_ended_before_it_was_heard_has_nobody_left_whatever_others_have() {
        let (port, _current) = ProxyPort::new();
        port.note_left(1, 7);
        port.note_none_left(1);
        port.note_none_left(2);
        let left = async |pid| port.left_by(pid, Duration::from_millis(1)).await;
        assert_eq!([left(1).await, left(2).await, left(3).await], [Some(7), Some(0), None]);
    }

    #[tokio::test]
    async fn a_proxy_is_replaced_once_and_none_in_its_stead() {
        let (port, _current) = ProxyPort::new();
        let is_wanted = async |pid| {
            let wanted = tokio::time::timeout(Duration::from_millis(1), port.replaced(pid)).await;
            wanted.is_ok()
        };
        port.replace(1);
        assert!(!is_wanted(2).await, "one that was started meanwhile");
        assert!(is_wanted(1).await);
        assert!(!is_wanted(1).await && !port.call_off_replacement(1), "it is under way");
        port.replace(1);
        assert!(port.call_off_replacement(1) && !is_wanted(1).await);
    }

    #[tokio::test]
    async fn a_proxy_that_has_missed_a_message_is_told_none_before_its_connection_begins_anew() {
        let (port, mut told) = ProxyPort::with_room_for(2);
        port.connected();
        let counts = |token| port.current.send(ToProxy::Counts { token });
        assert_eq!([1, 2, 3].map(counts), [true, true, false]);
        port.current.overran().await;
        assert!(matches!(told.try_recv(), Ok(ToProxy::Counts { token: 1 })));
        assert!(!counts(4), "it would be told of what comes after what it has missed");
        port.current.begin(&mut told);
        assert!(told.try_recv().is_err(), "answers to what it has forgotten");
        assert!(counts(5));
        port.current.begin(&mut told);
        assert!(matches!(told.try_recv(), Ok(ToProxy::Counts { token: 5 })), "nothing was missed");
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
