//! One app's only caller: it knows which answer must come next.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::count::{Count, Place};
use super::dice::Dice;
use super::history::{History, Request, Verdict};
use super::http2::{self, Ways};
use super::tally::Tally;
use super::way::{Sleep, Way};
use super::wire::{Answer, Connection, Failure, Socket, Wait};

/// One of so many uses of a kept connection is its last, so that those of former proxies come to their end.
const USES: u64 = 8;

/// Asks one app, again and again.
pub(super) struct Caller<'a> {
    app: usize,
    address: SocketAddr,
    sleep: Sleep,
    history: &'a History,
    http: Kept<Connection>,
    http2: http2::Caller,
    http2_used: Instant,
    raw: Kept<Connection>,
    socket: Kept<Socket>,
    count: Count,
    /// When the last answer but one came, at the latest.
    counted: Instant,
    dice: Dice,
    pub(super) tally: Tally,
}

/// A connection that is used again.
struct Kept<C> {
    connection: Option<C>,
    used: Instant,
}

impl<C> Kept<C> {
    fn none() -> Self {
        Self { connection: None, used: Instant::now() }
    }
}

impl<'a> Caller<'a> {
    pub(super) fn new(
        app: usize,
        address: SocketAddr,
        history: &'a History,
        seed: u64,
    ) -> Result<Self> {
        let now = Instant::now();
        Ok(Self {
            app,
            address,
            sleep: Sleep::of(app),
            history,
            http: Kept::none(),
            http2: http2::Caller::new(address)?,
            http2_used: now,
            raw: Kept::none(),
            socket: Kept::none(),
            count: Count::default(),
            counted: now,
            dice: Dice::new(seed, app as u64),
            tally: Tally::default(),
        })
    }

    /// Calls until `end` is set.
    pub(super) fn call_until(&mut self, end: &AtomicBool) {
        while !end.load(Ordering::Relaxed) {
            let (pause, way) = (self.pause(), self.way());
            self.http2.rest(pause);
            let begun = Instant::now();
            match way {
                Way::Two => self.two(begun),
                _ => {
                    let answer = self.ask(way, begun);
                    self.conclude(way, begun, answer);
                }
            }
        }
    }

    /// Half of the time about when the Machine falls asleep; else before, or long after.
    fn pause(&mut self) -> Duration {
        let us = match self.dice.roll(8) {
            0 => self.dice.roll(90_000),
            1..=5 => 95_000 + self.dice.roll(50_000),
            _ => 145_000 + self.dice.roll(250_000),
        };
        Duration::from_micros(us)
    }

    fn way(&mut self) -> Way {
        match (self.dice.roll(7), self.sleep) {
            (0, _) => Way::Http,
            (1, _) => Way::KeptHttp,
            (2 | 3, _) => Way::KeptHttp2,
            (4, _) => Way::Two,
            (5, Sleep::Suspend) => Way::KeptTcp,
            (5, Sleep::Stop) => Way::Tcp,
            (_, Sleep::Suspend) => Way::KeptSocket,
            (_, Sleep::Stop) => Way::Socket,
        }
    }

    fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address.ip(), port)
    }

    fn ask(&mut self, way: Way, begun: Instant) -> Result<Answer, Failure> {
        let is_last = self.dice.roll(USES) == 0;
        match way {
            Way::Http => once(self.port(80)),
            Way::Tcp => once(self.port(81)),
            Way::KeptHttp => {
                let kept = self.found(way, begun, Connection::is_open, |it| &mut it.http);
                let mut connection = kept.map_or_else(|| Connection::to(self.port(80)), Ok)?;
                connection.ask("keep-alive")?;
                let answer = connection.answer()?;
                self.http.connection = (!is_last && !answer.closes).then_some(connection);
                Ok(answer)
            }
            Way::KeptTcp => {
                let kept = self.found(way, begun, Connection::is_open, |it| &mut it.raw);
                let mut connection = kept.map_or_else(|| Connection::to(self.port(81)), Ok)?;
                connection.ask("keep-alive")?;
                let answer = connection.answer()?;
                self.raw.connection = (!is_last).then_some(connection);
                Ok(answer)
            }
            Way::KeptSocket => {
                let kept = self.found(way, begun, Socket::is_open, |it| &mut it.socket);
                let is_new = kept.is_none();
                let mut socket = kept.map_or_else(|| Socket::to(self.port(80)), Ok)?;
                let answer = socket.ask("again")?;
                let wait = if is_new { socket.wait } else { Wait::None };
                self.socket.connection = (!is_last).then_some(socket);
                Ok(Answer { wait, ..answer })
            }
            Way::Socket => {
                let mut socket = Socket::to(self.port(80))?;
                let (wait, answer) = (socket.wait, socket.ask("once")?);
                socket.close()?;
                Ok(Answer { wait, ..answer })
            }
            Way::KeptHttp2 => self.http2(begun),
            Way::Two | Way::Udp => Err(Failure::wrong("asking", "not one request", String::new())),
        }
    }

    /// The kept connection, unless the other side has ended it.
    fn found<C>(
        &mut self,
        way: Way,
        now: Instant,
        is_open: impl FnOnce(&C) -> bool,
        kept: impl FnOnce(&mut Self) -> &mut Kept<C>,
    ) -> Option<C> {
        let kept = kept(self);
        let (found, used) = (kept.connection.take(), kept.used);
        kept.used = now;
        let found = found?;
        if is_open(&found) {
            return Some(found);
        }
        self.found_closed(way, used);
        None
    }

    /// A kept connection that is closed is nobody's failure where somebody had to close it.
    fn found_closed(&mut self, way: Way, used: Instant) {
        match self.history.ended(self.request(way, used)) {
            Some(kind) => self.tally.note(way, format!("connected anew after {}", kind.name())),
            None if way.ends_with_its_program() => {
                let text =
                    format!("app{} {}: unused since {:?}", self.app, way.name(), used.elapsed());
                self.tally.fault(way, "a connection at rest was ended", &text);
            }
            None => self.tally.note(way, "connected anew, closed at rest".to_owned()),
        }
    }

    fn http2(&mut self, begun: Instant) -> Result<Answer, Failure> {
        let mut ways = Ways::default();
        let answer = self.http2.ask(&mut ways);
        if ways.found_closed {
            self.found_closed(Way::KeptHttp2, self.http2_used);
        }
        for _ in 0..ways.moved {
            self.tally.note(Way::KeptHttp2, "moved after GOAWAY".to_owned());
        }
        self.http2_used = begun;
        if answer.is_err() || self.dice.roll(USES) == 0 {
            self.http2.forget();
        }
        answer
    }

    /// Two at once, by HTTP and by TCP: both wait for the same wake.
    fn two(&mut self, begun: Instant) {
        let asked = [80, 81].map(|port| {
            let mut connection = Connection::to(self.port(port))?;
            connection.ask("close").map(|()| connection)
        });
        let answers = asked.map(|connection| {
            let mut connection = connection?;
            let answer = connection.answer()?;
            connection.ends().map(|()| answer)
        });
        match answers {
            [Ok(one), Ok(two)] => {
                let places = self.count.take_both([one.count, two.count], self.may_begin());
                self.counted = begun;
                for (answer, place) in [&one, &two].into_iter().zip(places) {
                    self.take(Way::Two, begun, answer, place);
                }
            }
            mut answers => {
                // What is known not to have an answer first.
                answers.sort_by_key(Result::is_ok);
                for answer in answers {
                    self.conclude(Way::Two, begun, answer);
                }
            }
        }
    }

    /// Whether the program may have begun anew since the last answer.
    fn may_begin(&self) -> bool {
        self.sleep == Sleep::Stop || self.history.deployed(self.request(Way::Http, self.counted))
    }

    fn request(&self, way: Way, begun: Instant) -> Request {
        let ends_with_its_program = way.ends_with_its_program();
        Request { app: self.app, ends_with_its_program, begun, ended: Instant::now() }
    }

    fn conclude(&mut self, way: Way, begun: Instant, answer: Result<Answer, Failure>) {
        match answer {
            Ok(answer) => {
                let place = self.count.take(answer.count, self.may_begin());
                self.counted = begun;
                self.take(way, begun, &answer, place);
            }
            Err(failure) => {
                self.count.lose(1);
                self.judge(way, begun, &failure);
            }
        }
    }

    fn judge(&mut self, way: Way, begun: Instant, failure: &Failure) {
        match self.history.judge(self.request(way, begun), failure.failed) {
            Verdict::Excused(kind) => self.tally.excuse(way, kind.name()),
            Verdict::Crossed(kind) => {
                let what = format!("crossed the end of its connection by {}", kind.name());
                self.tally.note(way, what);
            }
            Verdict::Fault => {
                let text = format!("{} after {:?}: {failure}", self.told(way), begun.elapsed());
                self.tally.fault(way, failure.what, &text);
            }
        }
    }

    fn take(&mut self, way: Way, begun: Instant, answer: &Answer, place: Place) {
        let took = begun.elapsed();
        if let Place::Wrong(last) = place {
            let text = format!("{}: answer {} after answer {last}", self.told(way), answer.count);
            self.tally.fault(way, "lost, made twice, or begun anew", &text);
        }
        // Raw TCP has no words of its own.
        let wait = match answer.wait {
            Wait::None if self.sleep == Sleep::Stop && place == Place::First => Wait::Start,
            wait => wait,
        };
        self.tally.answer(way, took, wait);
    }

    /// When, whom and how.
    fn told(&self, way: Way) -> String {
        let (app, address) = (self.app, self.address.ip());
        format!("{} app{app} [{address}] {}", super::time_of_day(), way.name())
    }
}

/// By a connection of its own.
fn once(address: SocketAddr) -> Result<Answer, Failure> {
    let mut connection = Connection::to(address)?;
    connection.ask("close")?;
    let answer = connection.answer()?;
    connection.ends()?;
    Ok(answer)
}
