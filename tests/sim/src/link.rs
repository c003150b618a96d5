//! The link between server and proxy: messages in order and with delays, one connection after the other.
//!
//! It ends with one of both, or breaks while both live. Then each side notices at a time of its own, what was said and
//! not yet heard is lost from some point on, and the server connects anew, later. A connection begins as the real one
//! does: app by app, what is still waited for, the end of the snapshot, and only then what was said meanwhile. A
//! server that starts may find a proxy that lives and does not greet in time.

use std::collections::BTreeSet;
use std::time::Duration;

use perch_core::drains::{Drain, Drains, Process, Which};
use perch_core::lifecycle::Event;
use perch_core::mutant::Mutant;
use perch_core::time::Timestamp;

use crate::plan::id;
use crate::world::{Ev, ToProxy, ToServer, World};

/// As long as the real server waits before it connects anew.
const PAUSE: Duration = Duration::from_millis(200);
/// A drain is forgotten if its Machine is empty for so long and the proxy has been told everything: each message takes
/// up to 0.3 s.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// The connection, as it really is.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// What is said now is heard, unless it breaks before.
    pub(crate) is_up: bool,
    pub(crate) number: u64,
    last_to_proxy: u64,
    last_to_server: u64,
    server_knows: bool,
    proxy_knows: bool,
}

/// What a server has of its proxy.
#[derive(Debug)]
pub(crate) struct Port {
    /// By Machine; the owner is the Machine and its lifecycle's token.
    pub(crate) drains: Drains<usize, (usize, u64)>,
    last_token: u64,
    /// A connection has begun, and not everything was told.
    is_telling: bool,
    /// What waits for the end of that.
    changed: BTreeSet<usize>,
    answers: Vec<ToProxy>,
    heard: Vec<ToServer>,
}

impl Port {
    pub(crate) fn new(mutant: Mutant) -> Self {
        Self {
            drains: Drains::with_mutant(mutant),
            last_token: 0,
            is_telling: false,
            changed: BTreeSet::new(),
            answers: Vec::new(),
            heard: Vec::new(),
        }
    }

    /// The connection has ended: whatever waits for it is void.
    fn hang_up(&mut self) {
        self.is_telling = false;
        self.changed.clear();
        self.answers.clear();
        self.heard.clear();
    }
}

/// A drain that the server waits for, as everybody can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Awaited {
    run: u64,
    asked_at: Timestamp,
    timeout: Duration,
}

/// Somebody looks whether a drain goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    index: usize,
    drain: Awaited,
    /// The connection over which the last look found the proxy told, and the Machine empty.
    idle_over: Option<u64>,
}

impl World {
    // ---- connections ----------------------------------------------------------------------------

    /// Joins server and proxy, if both are there; the server then tells all that it knows.
    pub(crate) fn connect(&mut self) {
        if self.server.is_none() || self.proxy.is_none() || self.link.is_up {
            return;
        }
        self.server_parts(self.link.number);
        self.proxy_parts(self.link.number);
        if let Some(proxy) = &mut self.proxy {
            proxy.named.clear();
        }
        self.link = Link { is_up: true, number: self.link.number + 1, ..Link::default() };
        self.note("connected");
        if let Some(server) = &mut self.server {
            server.port.drains.connected();
            server.port.is_telling = true;
        }
        self.tell_thaws();
        if self.server.as_ref().is_some_and(|s| s.complete) {
            self.begin_session();
        }
    }

    /// The server has taken up what was stored, and goes on over the connection that it has.
    pub(crate) fn begin_session(&mut self) {
        if self.link.is_up {
            self.look_for_thawed();
            self.tell(self.link.number, 0);
        }
    }

    /// The next of what a connection begins with: each app, then what is waited for, then the end of it.
    pub(crate) fn tell(&mut self, link: u64, step: usize) {
        let Some(server) = self.server.as_mut().filter(|it| it.port.is_telling) else { return };
        if link != self.link.number {
            return;
        }
        let apps = self.plan.apps.len();
        if step < apps {
            server.port.changed.remove(&step);
            self.say_app(step, None);
        } else if step == apps {
            let told = server.port.drains.outstanding(Which::Current).map(message);
            told.collect::<Vec<_>>().into_iter().for_each(|drain| self.say_to_proxy(drain));
        } else {
            return self.end_telling();
        }
        if self.plan.breaks {
            let pause = self.breaks.millis(0, 20);
            self.later(pause, Ev::Tell { link, step: step + 1 });
        } else {
            self.tell(link, step + 1);
        }
    }

    fn end_telling(&mut self) {
        self.say_to_proxy(ToProxy::SnapshotEnd);
        let Some(server) = &mut self.server else { return };
        server.port.is_telling = false;
        let changed = std::mem::take(&mut server.port.changed);
        let answers = std::mem::take(&mut server.port.answers);
        let heard = std::mem::take(&mut server.port.heard);
        changed.into_iter().for_each(|app| self.say_app(app, None));
        answers.into_iter().for_each(|answer| self.say_to_proxy(answer));
        heard.into_iter().for_each(|wish| self.on_message_to_server(wish));
    }

    /// Whether an app is told of later, with all that has changed by then.
    pub(crate) fn is_told_later(&mut self, app: usize) -> bool {
        let port = self.server.as_mut().map(|server| &mut server.port);
        port.filter(|port| port.is_telling).is_some_and(|port| {
            port.changed.insert(app);
            true
        })
    }

    pub(crate) fn send_to_proxy(&mut self, message: ToProxy) {
        match &mut self.server {
            Some(server) if server.port.is_telling => server.port.answers.push(message),
            _ => self.say_to_proxy(message),
        }
    }

    pub(crate) fn say_to_proxy(&mut self, message: ToProxy) {
        if self.link.is_up {
            let at = self.arrival(self.link.last_to_proxy);
            self.link.last_to_proxy = at;
            let link = self.link.number;
            self.at(at, Ev::ToProxy { link, message });
        }
    }

    pub(crate) fn send_to_server(&mut self, message: ToServer) {
        if self.link.is_up {
            let at = self.arrival(self.link.last_to_server);
            self.link.last_to_server = at;
            let link = self.link.number;
            self.at(at, Ev::ToServer { link, message });
        }
    }

    fn arrival(&mut self, last: u64) -> u64 {
        let delay = self.choices.millis(0, self.plan.link_ms_max);
        (self.now + delay).as_micros().max(last)
    }

    pub(crate) fn proxy_hears(&mut self, link: u64, message: ToProxy) {
        if link == self.link.number && !self.link.proxy_knows {
            self.on_message_to_proxy(message);
        }
    }

    /// A wish may wait in a Machine's mailbox when the connection ends; it counts until the next one begins.
    pub(crate) fn server_hears(&mut self, link: u64, message: ToServer) {
        let is_wish = !matches!(message, ToServer::Drained { .. });
        if link != self.link.number || (self.link.server_knows && !is_wish) {
            return;
        }
        match &mut self.server {
            Some(server) if server.port.is_telling => server.port.heard.push(message),
            _ => self.on_message_to_server(message),
        }
    }

    /// Whether the proxy knows what the server does. Over a broken link it cannot; else it knows what it needs to.
    pub(crate) fn proxy_is_told(&self) -> bool {
        let heard_all = self.proxy.as_ref().is_some_and(|proxy| proxy.is_server_ready());
        !self.plan.breaks || self.link.is_up && heard_all
    }

    // ---- ends -----------------------------------------------------------------------------------

    /// The server is no more; returns what of its messages can still be read.
    pub(crate) fn cut_link_to_proxy(&mut self) -> Vec<ToProxy> {
        let link = self.end_link();
        let sent = self.agenda.values().filter_map(|event| match event {
            Ev::ToProxy { link: l, message } if *l == link => Some(message.clone()),
            _ => None,
        });
        let mut sent: Vec<ToProxy> = sent.filter(|_| !self.link.proxy_knows).collect();
        sent.truncate(self.choices.below(sent.len() + 1));
        sent
    }

    /// The proxy is no more; returns what of its messages can still be read.
    pub(crate) fn cut_link_to_server(&mut self) -> Vec<ToServer> {
        let link = self.end_link();
        let sent = self.agenda.values().filter_map(|event| match event {
            Ev::ToServer { link: l, message } if *l == link => Some(message.clone()),
            _ => None,
        });
        let mut sent: Vec<ToServer> = sent.filter(|_| !self.link.server_knows).collect();
        sent.truncate(self.choices.below(sent.len() + 1));
        sent
    }

    fn end_link(&mut self) -> u64 {
        let link = self.link.number;
        self.link.is_up = false;
        self.link.number += 1;
        link
    }

    /// Nobody answers any more what a proxy was asked that has ended.
    pub(crate) fn proxy_has_ended(&mut self) {
        let Some(server) = &mut self.server else { return };
        server.port.hang_up();
        let over = server.port.drains.parted(Process::Ended);
        self.drains_are_over(over);
    }

    /// The server sees an end of the connection while it still runs; a proxy that ended while it was broken already is
    /// missed only by the next attempt.
    pub(crate) fn server_misses_proxy(&mut self) {
        if !self.link.server_knows {
            self.proxy_has_ended();
        }
    }

    // ---- breaks ---------------------------------------------------------------------------------

    /// Breaks it, while both live and go on.
    pub(crate) fn break_link(&mut self) {
        if !self.is_chaos() {
            return;
        }
        let pause = self.breaks.millis(100, 15_000);
        self.later(pause, Ev::Break);
        if !self.link.is_up {
            return;
        }
        self.note("the link breaks");
        self.link.is_up = false;
        self.lose(|event, link| matches!(event, Ev::ToProxy { link: l, .. } if *l == link));
        self.lose(|event, link| matches!(event, Ev::ToServer { link: l, .. } if *l == link));
        self.hold_wishes();
        let link = self.link.number;
        let mut noticed = || [Duration::ZERO, self.breaks.millis(0, 1_000)][self.breaks.below(2)];
        let (by_server, by_proxy) = (noticed(), noticed());
        let down_max = [50, 3_000, 20_000][self.breaks.below(3)];
        let down = by_server + PAUSE + self.breaks.millis(0, down_max);
        self.later(by_server, Ev::ServerParts(link));
        self.later(by_proxy, Ev::ProxyParts(link));
        self.later(down, Ev::Reconnect(link));
    }

    /// From some point on nothing of this arrives.
    fn lose(&mut self, is_meant: fn(&Ev, u64) -> bool) {
        let link = self.link.number;
        let sent = self.agenda.iter().filter(|(_, event)| is_meant(event, link));
        let sent: Vec<_> = sent.map(|(at, _)| *at).collect();
        for at in &sent[self.breaks.below(sent.len() + 1)..] {
            self.agenda.remove(at);
        }
    }

    /// What the server has read may wait for long in a Machine's mailbox.
    fn hold_wishes(&mut self) {
        let held = [Duration::ZERO, self.breaks.millis(0, 5_000)][self.breaks.below(2)];
        let link = self.link.number;
        let is_meant = |event: &Ev| matches!(event, Ev::ToServer { link: l, .. } if *l == link);
        let read: Vec<_> = self.agenda.extract_if(.., |_, event| is_meant(event)).collect();
        for ((at, _), event) in read {
            self.at((at + held).as_micros(), event);
        }
    }

    pub(crate) fn server_parts(&mut self, link: u64) {
        if link != self.link.number || self.link.is_up || self.link.server_knows {
            return;
        }
        self.link.server_knows = true;
        let Some(server) = &mut self.server else { return };
        server.port.hang_up();
        let over = server.port.drains.parted(Process::Lives);
        self.drains_are_over(over);
    }

    pub(crate) fn proxy_parts(&mut self, link: u64) {
        if link == self.link.number && !self.link.is_up && !self.link.proxy_knows {
            self.link.proxy_knows = true;
            self.proxy_lost_server();
        }
    }

    pub(crate) fn reconnect(&mut self, link: u64) {
        if link == self.link.number {
            self.connect();
        }
    }

    /// A server that starts finds the proxy, if it lives, in time or late.
    pub(crate) fn find_proxy(&mut self) {
        let late = self.plan.breaks && self.is_chaos() && self.breaks.chance(25);
        if self.proxy.is_none() || !late {
            return self.connect();
        }
        self.note("the proxy does not greet in time");
        let wait = self.breaks.millis(2_000, 4_000);
        self.later(wait, Ev::Reconnect(self.link.number));
        // The connection of the server before it is none of its own.
        self.link.server_knows = false;
        self.server_parts(self.link.number);
    }

    // ---- drains ---------------------------------------------------------------------------------

    pub(crate) fn ask_drain(&mut self, index: usize, run: u64, life: u64, timeout: Duration) {
        let drain = Awaited { run, asked_at: self.now, timeout };
        self.truths[index].awaited = Some(drain);
        self.later(ANSWERED_WITHIN, Ev::LookAtDrain(Look { index, drain, idle_over: None }));
        let Some(server) = &mut self.server else { return };
        server.port.last_token += 1;
        let token = server.port.last_token;
        let drain = Drain { machine: index, run, token, timeout };
        let told = message(&drain);
        let over = server.port.drains.begin(drain, (index, life), []);
        self.send_to_proxy(told);
        self.drains_are_over(over);
    }

    pub(crate) fn call_off_drain(&mut self, index: usize, run: u64) {
        self.truths[index].awaited = None;
        if let Some(server) = &mut self.server {
            server.port.drains.forget(&index, run);
        }
        self.send_to_proxy(ToProxy::Undrain { index, run });
    }

    pub(crate) fn drain_is_answered(&mut self, token: u64) {
        let server = self.server.as_mut();
        let over = server.and_then(|it| it.port.drains.answered(Which::Current, token));
        if let Some((index, token)) = over {
            self.life_event(index, Event::Drained { token });
        }
    }

    fn drains_are_over(&mut self, over: impl IntoIterator<Item = (usize, u64)>) {
        for (index, token) in over {
            self.later(Duration::ZERO, Ev::Drained { index, token });
        }
    }

    /// The server goes on with what it wanted the Machine empty for, answered or not.
    pub(crate) fn end_drain(&mut self, index: usize, run: u64) {
        if let Some(server) = &mut self.server {
            server.port.drains.forget(&index, run);
        }
        let drain = self.truths[index].awaited.take();
        self.check_time_is_over(index, run, drain);
        self.check_promise(index, run);
    }

    /// A drain that a server has begun which died in it binds the next one.
    pub(crate) fn check_promise(&mut self, index: usize, run: u64) {
        let promised = self.truths[index].promised.take();
        self.check_time_is_over(index, run, promised);
    }

    fn check_time_is_over(&mut self, index: usize, run: u64, drain: Option<Awaited>) {
        let early = drain.is_some_and(|it| it.run == run && self.now < it.asked_at + it.timeout);
        if early && self.has_requests(index, run) {
            self.fail(&format!("{} is ended under requests, before their time", id(index)));
        }
    }

    /// A drain ends soon when there is nobody left and the proxy can say so.
    pub(crate) fn look_at_drain(&mut self, look: Look) {
        let Look { index, drain, idle_over } = look;
        if self.truths[index].awaited != Some(drain) {
            return;
        }
        let is_told = self.link.is_up
            && self.server.as_ref().is_some_and(|server| !server.port.is_telling)
            && self.proxy.is_some();
        let is_idle = is_told && self.inside(index, drain.run, None) == 0;
        if is_idle && idle_over == Some(self.link.number) {
            return self.fail(&format!("the drain of {} is forgotten", id(index)));
        }
        let idle_over = is_idle.then_some(self.link.number);
        self.later(ANSWERED_WITHIN, Ev::LookAtDrain(Look { index, drain, idle_over }));
    }
}

fn message(drain: &Drain<usize>) -> ToProxy {
    let Drain { machine: index, run, token, timeout } = *drain;
    ToProxy::Drain { index, run, token, timeout }
}
