//! Wakes and callers' waits, told to a collector of OpenTelemetry (`otlp_endpoint`): OTLP over HTTP, as JSON.
//!
//! It follows the ledger, which nobody waits for: what is not taken yet waits there, also over the end of a server, at most
//! as many records as the ledger keeps, and the oldest are lost first, which is counted and said. A collector that cannot be reached is asked again after a while; that is said
//! once, and again when it takes spans. What is too large for it goes in halves, and what follows in pieces of the length
//! that was taken. What it refuses for good is left out, which is said once as well. All that is one line a minute at most:
//! what comes earlier is said when it is time, if it is still so.
//!
//! HTTP is spoken by hand: what counts is the answer of a collector that refuses early and closes while we still write,
//! and hyper's client may give up with the failed write.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use perch_api::wire::LedgerEvent;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::ledger::Ledger;
use super::world::World;
use crate::config::Config;

mod otlp;

/// Records of one request, of about 2 kB each. All of a page that is read at once are 264 requests at most, and each record
/// is in 9 of them.
const RECORDS_MAX: usize = 256;
/// After so many requests of a length that are taken the next one is twice as long: where that is too long again, one in
/// nine is said in vain.
const LENGTHEN_AFTER: usize = 8;
/// After a request that took all there was: what happens meanwhile goes together.
const GATHER_TIME: Duration = Duration::from_secs(1);
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between tries, from the first to the longest.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// Between two lines of the log about the collector, and between two about records that were lost to newer ones.
const SAY_INTERVAL: Duration = Duration::from_secs(60);
/// What is read of an answer, until its status is known.
const HEAD_BYTES_MAX: u64 = 8 * 1024;
/// The status of who would take less at once.
const TOO_LARGE: u16 = 413;

/// Where spans go: `http://ADDRESS[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    path: String,
}

impl Endpoint {
    /// The port of OTLP over HTTP.
    const PORT: u16 = 4318;

    /// # Errors
    /// In words that say what to write instead.
    fn parse(text: &str) -> Result<Self, String> {
        const REMEDY: &str = "write \"http://ADDRESS:PORT\", such as \"http://127.0.0.1:4318\"";
        if text.starts_with("https://") {
            return Err("otlp_endpoint cannot be https; run a collector on this host, or in a network that is safe".to_owned());
        }
        let rest = text.strip_prefix("http://");
        let rest =
            rest.ok_or_else(|| format!("otlp_endpoint {text:?} is no URL of http; {REMEDY}"))?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let authority = authority.replace("localhost", "127.0.0.1");
        let bare = authority.trim_start_matches('[').trim_end_matches(']');
        let address = match (authority.parse(), bare.parse()) {
            (Ok(address), _) => address,
            (Err(_), Ok(ip)) => SocketAddr::new(ip, Self::PORT),
            (Err(_), Err(_)) => {
                return Err(format!(
                    "otlp_endpoint {text:?} does not name an IP address; {REMEDY}"
                ));
            }
        };
        let good = |byte: u8| byte.is_ascii_graphic() && !b"?#\"".contains(&byte);
        if !path.bytes().all(good) {
            return Err(format!("otlp_endpoint {text:?} has a path that is none; {REMEDY}"));
        }
        let path = path.trim_end_matches('/').trim_end_matches("/v1/traces");
        Ok(Self { address, path: format!("{path}/v1/traces") })
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Why spans were not taken.
#[derive(Debug, thiserror::Error)]
enum NotTaken {
    /// Another try may help.
    #[error("could not reach it")]
    Unreached(#[source] io::Error),
    #[error("it is busy: status {0}")]
    Busy(u16),
    /// None will.
    #[error("it refused them: status {0}")]
    Refused(u16),
}

/// Opens the ledger for what this configuration tells of it.
///
/// # Errors
/// As [`Ledger::open`].
pub(crate) fn ledger(data: &Path, config: &Config) -> io::Result<Ledger> {
    match config.otlp_endpoint {
        Some(_) => Ledger::open_followed(data, otlp::is_told),
        None => Ledger::open(data),
    }
}

/// Tells the configured collector what happens, until the server ends.
pub(crate) async fn keep(world: Arc<World>) {
    let Some(endpoint) = world.config.otlp_endpoint.clone() else { return };
    let shutdown = world.shutdown.clone();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = follow(&world.ledger, &world.config.region, &endpoint) => {}
    }
}

async fn follow(ledger: &Ledger, region: &str, endpoint: &Endpoint) {
    let (mut pages, mut teller) = (Pages::new(ledger), Teller::default());
    loop {
        let page = pages.next().await;
        let refused = teller.tell_all(endpoint, region, &page).await;
        ledger.tally().refused += refused as u64;
        page.last().into_iter().for_each(|last| ledger.followed(last.id));
    }
}

/// What the ledger has, in pieces as large as one request.
struct Pages<'a> {
    ledger: &'a Ledger,
    /// There was nothing more.
    is_through: bool,
    /// How many were lost when it was said, and when that was.
    said: (u64, Option<Instant>),
}

impl<'a> Pages<'a> {
    fn new(ledger: &'a Ledger) -> Self {
        Self { ledger, is_through: false, said: (0, None) }
    }

    /// At once while there is more than one request takes: nobody else reads so fast.
    async fn next(&mut self) -> Vec<LedgerEvent> {
        if self.is_through {
            tokio::time::sleep(GATHER_TIME).await;
        }
        let page = self.ledger.follow(RECORDS_MAX).await;
        self.is_through = page.len() < RECORDS_MAX;
        if let Some(records) = self.lost(Instant::now()) {
            tracing::warn!(
                records,
                "spans are lost: more was recorded than the collector (`otlp_endpoint`) took"
            );
        }
        page
    }

    /// How many were overtaken since this was answered last; not too often.
    fn lost(&mut self, now: Instant) -> Option<u64> {
        let (before, when) = self.said;
        let all = self.ledger.tally().overtaken;
        let is_due = when.is_none_or(|when| SAY_INTERVAL <= now.duration_since(when));
        if all == before || !is_due {
            return None;
        }
        self.said = (all, Some(now));
        Some(all - before)
    }
}

/// What became of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Taken,
    /// Fewer at once may be taken.
    TooLarge,
    Refused,
}

/// What was complained of last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Complaint {
    /// Spans wait.
    Late,
    /// Spans are lost.
    Lost,
    /// Those of single records are, while others may be taken.
    TooLarge,
}

/// How many records are told at once.
#[derive(Debug)]
struct Length {
    records: usize,
    /// So often that was taken.
    times: usize,
}

impl Default for Length {
    fn default() -> Self {
        Self { records: RECORDS_MAX, times: 0 }
    }
}

impl Length {
    fn note_too_large(&mut self, records: usize) {
        *self = Self { records: records / 2, times: 0 };
    }

    fn note_taken(&mut self, records: usize) {
        self.times += usize::from(records == self.records);
        if self.times == LENGTHEN_AFTER {
            *self = Self { records: RECORDS_MAX.min(2 * self.records), times: 0 };
        }
    }
}

/// Whoever tells, and has complained or not.
#[derive(Debug, Default)]
struct Teller {
    complaint: Option<Complaint>,
    /// When something was said last.
    said: Option<Instant>,
    length: Length,
}

impl Teller {
    /// Tells these records, in halves and halves of halves as far as they are too large; how many were refused.
    async fn tell_all(
        &mut self,
        endpoint: &Endpoint,
        region: &str,
        records: &[LedgerEvent],
    ) -> usize {
        let (mut rest, mut refused) = (records, 0);
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(self.length.records.min(rest.len()));
            let body = otlp::request(region, piece).to_string();
            match self.tell(endpoint, body.as_bytes()).await {
                Told::TooLarge if 1 < piece.len() => {
                    self.length.note_too_large(piece.len());
                    continue;
                }
                Told::Taken => self.length.note_taken(piece.len()),
                Told::TooLarge => {
                    let why = NotTaken::Refused(TOO_LARGE);
                    self.lose(Complaint::TooLarge, endpoint.address, &why);
                    refused += piece.len();
                }
                Told::Refused => refused += piece.len(),
            }
            rest = behind;
        }
        refused
    }

    /// Returns when it was told, or will never be.
    async fn tell(&mut self, endpoint: &Endpoint, body: &[u8]) -> Told {
        let [mut pause, longest] = PAUSES;
        loop {
            let taken = tokio::time::timeout(TIMEOUT, post(endpoint, body)).await;
            let taken =
                taken.unwrap_or_else(|_| Err(NotTaken::Unreached(io::ErrorKind::TimedOut.into())));
            let address = endpoint.address;
            let Err(why) = taken else {
                if self.complaint != Some(Complaint::TooLarge) && self.is_news(None) {
                    tracing::info!(%address, "the collector takes spans again");
                }
                return Told::Taken;
            };
            match why {
                NotTaken::Refused(TOO_LARGE) => return Told::TooLarge,
                NotTaken::Refused(_) => {
                    self.lose(Complaint::Lost, address, &why);
                    return Told::Refused;
                }
                NotTaken::Unreached(_) | NotTaken::Busy(_) => {}
            }
            if self.is_news(Some(Complaint::Late)) {
                let cause = std::error::Error::source(&why).map(ToString::to_string);
                tracing::warn!(%address, %why, cause, "the collector (`otlp_endpoint`) takes no spans");
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(longest);
        }
    }

    fn lose(&mut self, complaint: Complaint, address: SocketAddr, why: &NotTaken) {
        if self.is_news(Some(complaint)) {
            tracing::warn!(%address, %why, "spans are lost: the collector (`otlp_endpoint`) does not want them");
        }
    }

    fn is_news(&mut self, complaint: Option<Complaint>) -> bool {
        self.is_news_at(complaint, Instant::now())
    }

    /// Whether this is to be said now; what is not is asked for again.
    fn is_news_at(&mut self, complaint: Option<Complaint>, now: Instant) -> bool {
        let is_due = self.said.is_none_or(|said| SAY_INTERVAL <= now.duration_since(said));
        if self.complaint == complaint || !is_due {
            return false;
        }
        (self.complaint, self.said) = (complaint, Some(now));
        true
    }
}

async fn post(endpoint: &Endpoint, body: &[u8]) -> Result<(), NotTaken> {
    let status = exchange(endpoint, body).await.map_err(NotTaken::Unreached)?;
    match status {
        200..=299 => Ok(()),
        // What OTLP calls retryable, and what says so itself.
        408 | 429 | 502..=504 => Err(NotTaken::Busy(status)),
        _ => Err(NotTaken::Refused(status)),
    }
}

/// One request on a connection of its own; the answer's status. The rest of the answer is not waited for.
async fn exchange(endpoint: &Endpoint, body: &[u8]) -> io::Result<u16> {
    let Endpoint { address, path } = endpoint;
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let request = [head.as_bytes(), body].concat();
    let (read, mut write) = stream.split();
    let answer = status(read);
    tokio::pin!(answer);
    let sent = tokio::select! {
        status = &mut answer => return status,
        sent = write.write_all(&request) => sent,
    };
    // Who does not read it all may have answered before.
    answer.await.map_err(|error| sent.err().unwrap_or(error))
}

async fn status(read: impl AsyncRead + Unpin) -> io::Result<u16> {
    let mut lines = BufReader::new(read.take(HEAD_BYTES_MAX)).lines();
    while let Some(line) = lines.next_line().await? {
        let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
        let status = status.and_then(|status| status.parse().ok());
        let status: u16 = status.ok_or_else(|| io::Error::other("its answer is not HTTP"))?;
        if !(100..200).contains(&status) {
            return Ok(status);
        }
        // The answer follows the head of this one.
        while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
    }
    Err(io::Error::other("it ends without an answer"))
}

#[cfg(test)]
mod tests {
    use perch_api::wire::LedgerPhase;
    use serde_json::Value;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn an_endpoint_is_an_address_and_the_path_of_traces() {
        let of = |text: &str| Endpoint::parse(text).map(|it| (it.address.to_string(), it.path));
        let wanted = |address: &str, path: &str| Ok((address.to_owned(), path.to_owned()));
        assert_eq!(of("http://127.0.0.1:4318"), wanted("127.0.0.1:4318", "/v1/traces"));
        assert_eq!(of("http://localhost"), wanted("127.0.0.1:4318", "/v1/traces"));
        assert_eq!(of("http://[fd00::1]/"), wanted("[fd00::1]:4318", "/v1/traces"));
        assert_eq!(of("http://[::1]:80/a/"), wanted("[::1]:80", "/a/v1/traces"));
        assert_eq!(of("http://10.0.0.1/v1/traces"), wanted("10.0.0.1:4318", "/v1/traces"));
        for (bad, word) in [
            ("127.0.0.1:4318", "http://ADDRESS"),
            ("https://127.0.0.1", "collector on this host"),
            ("http://collector:4318", "IP address"),
            ("http://", "IP address"),
            ("http://127.0.0.1:99999", "IP address"),
            ("http://127.0.0.1/a b", "path"),
            ("http://127.0.0.1/a\r\nX: y", "path"),
        ] {
            assert!(of(bad).is_err_and(|text| text.contains(word)), "{bad}");
        }
    }

    #[tokio::test]
    async fn more_than_one_request_takes_is_read_at_once_and_then_it_gathers() {
        let dir = tempfile::tempdir().expect("a directory");
        let ledger = Ledger::open_followed(dir.path(), otlp::is_told).expect("a thread");
        for kind in ["wake", "veto"].repeat(2 * RECORDS_MAX + 1) {
            let (app, kind) = ("web".to_owned(), kind.to_owned());
            ledger.enter(LedgerEvent { app, kind, ..LedgerEvent::default() }, None);
        }
        let mut pages = Pages::new(&ledger);
        for (length, gathers) in [(RECORDS_MAX, false), (RECORDS_MAX, false), (1, true)] {
            let page = pages.next().await;
            assert!(page.iter().all(|event| event.kind == "wake"));
            assert_eq!((page.len(), pages.is_through), (length, gathers));
        }
    }

    #[test]
    fn what_is_lost_is_said_and_not_too_often() {
        let dir = tempfile::tempdir().expect("a directory");
        let ledger = Ledger::open(dir.path()).expect("a thread");
        let (mut pages, now) = (Pages::new(&ledger), Instant::now());
        let mut lost = |overtaken, now| {
            ledger.tally().overtaken = overtaken;
            pages.lost(now)
        };
        assert_eq!(lost(0, now), None);
        assert_eq!(lost(5, now), Some(5));
        assert_eq!(lost(12, now), None);
        assert_eq!(lost(12, now + SAY_INTERVAL), Some(7));
        assert_eq!(lost(12, now + 2 * SAY_INTERVAL), None);
    }

    /// What is made of an answer that begins so.
    async fn answered(answer: &str) -> Result<(), NotTaken> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let collector = async {
            let (mut stream, _) = listener.accept().await.expect("somebody comes");
            let mut all = vec![0; 4096];
            let length = stream.read(&mut all).await.expect("it speaks");
            stream.write_all(answer.as_bytes()).await.expect("it reads");
            String::from_utf8(all[..length].to_vec()).expect("text")
        };
        let endpoint = Endpoint { address, path: "/v1/traces".to_owned() };
        let (said, taken) = tokio::join!(collector, post(&endpoint, b"{}"));
        assert!(said.starts_with("POST /v1/traces HTTP/1.1\r\n") && said.ends_with("\r\n\r\n{}"));
        taken
    }

    #[tokio::test]
    async fn only_what_may_be_taken_later_is_told_again() {
        for taken in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 100 C\r\nA: b\r\n\r\nHTTP/1.1 202 X\r\n"]
        {
            assert!(answered(taken).await.is_ok(), "{taken}");
        }
        for busy in [408, 429, 503] {
            let answer = format!("HTTP/1.1 {busy} X\r\n\r\n");
            assert!(matches!(answered(&answer).await, Err(NotTaken::Busy(own)) if own == busy));
        }
        for refused in [301, 400, 401, 413, 500] {
            let answer = format!("HTTP/1.1 {refused} X\r\n");
            assert!(
                matches!(answered(&answer).await, Err(NotTaken::Refused(own)) if own == refused)
            );
        }
        for broken in ["", "SSH-2.0\r\n", "HTTP/1.1 x\r\n", "HTTP/1.1 100 C\r\n\r\n"] {
            assert!(matches!(answered(broken).await, Err(NotTaken::Unreached(_))), "{broken}");
        }
    }

    #[tokio::test]
    async fn a_collector_that_refuses_before_it_has_read_everything_is_heard() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let collector = async {
            let (mut stream, _) = listener.accept().await.expect("somebody comes");
            stream.read_u8().await.expect("it speaks");
            stream.write_all(b"HTTP/1.1 413 X\r\n\r\n").await.expect("it listens");
            // Closed with most of it unread, which resets the connection.
            drop(stream);
        };
        // More than the kernel keeps for both.
        let body = vec![b' '; 32 << 20];
        let endpoint = Endpoint { address, path: "/v1/traces".to_owned() };
        let ((), taken) = tokio::join!(collector, post(&endpoint, &body));
        assert!(matches!(taken, Err(NotTaken::Refused(413))), "{taken:?}");
    }

    #[tokio::test]
    async fn spans_that_are_refused_are_left_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let collector = async {
            let (mut stream, _) = listener.accept().await.expect("somebody comes");
            stream.write_all(b"HTTP/1.1 401 X\r\n\r\n").await.expect("it listens");
            stream
        };
        let endpoint = Endpoint { address, path: "/v1/traces".to_owned() };
        let mut teller = Teller { complaint: Some(Complaint::Late), ..Teller::default() };
        let (_stream, told) = tokio::join!(collector, teller.tell(&endpoint, b"{}"));
        assert_eq!((told, teller.complaint), (Told::Refused, Some(Complaint::Lost)));
    }

    #[test]
    fn each_trouble_is_said_once_and_one_line_in_a_while() {
        let (mut teller, begin) = (Teller::default(), Instant::now());
        let mut is_said = |complaint, intervals| {
            teller.is_news_at(complaint, begin + SAY_INTERVAL.mul_f64(intervals))
        };
        let (late, lost) = (Some(Complaint::Late), Some(Complaint::Lost));
        assert!(!is_said(None, 0.0), "all is well");
        assert!(is_said(late, 0.0), "at once");
        for tenths in 1..10 {
            let at = f64::from(tenths) / 10.0;
            assert!(!is_said(None, at) && !is_said(lost, at) && !is_said(late, at));
        }
        assert!(is_said(None, 1.0), "it is still so");
        assert!(!is_said(None, 3.0) && is_said(lost, 3.0) && !is_said(lost, 5.0));
    }

    #[test]
    fn the_length_that_was_taken_is_kept_and_tried_twice_as_long_after_a_while() {
        let mut length = Length::default();
        length.note_too_large(RECORDS_MAX);
        length.note_too_large(RECORDS_MAX / 2);
        for _ in 1..LENGTHEN_AFTER {
            length.note_taken(RECORDS_MAX / 4);
            length.note_taken(3);
            assert_eq!(length.records, RECORDS_MAX / 4);
        }
        length.note_taken(RECORDS_MAX / 4);
        for records in [RECORDS_MAX / 2, RECORDS_MAX, RECORDS_MAX] {
            assert_eq!(length.records, records);
            for _ in 0..LENGTHEN_AFTER {
                length.note_taken(records);
            }
        }
        assert_eq!(length.records, RECORDS_MAX, "no more at once");
    }

    /// The names of the spans of one request.
    async fn names_told(stream: &mut BufReader<TcpStream>) -> Vec<String> {
        let mut length = 0;
        loop {
            let mut line = String::new();
            assert_ne!(stream.read_line(&mut line).await.expect("it speaks"), 0, "it has ended");
            match line.trim_end().split_once(": ") {
                Some(("Content-Length", value)) => length = value.parse().expect("a number"),
                None if line == "\r\n" => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.expect("a body");
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array();
        let names = spans.expect("a list").iter().map(|span| span["name"].as_str());
        names.map(|name| name.expect("a text").to_owned()).collect()
    }

    /// Takes so many spans at once; all names that it took, and how many requests there were.
    async fn takes(listener: TcpListener, spans_max: usize, told: &mut (Vec<String>, usize)) {
        loop {
            let (stream, _) = listener.accept().await.expect("somebody comes");
            let mut stream = BufReader::new(stream);
            let names = names_told(&mut stream).await;
            told.1 += 1;
            let status = if names.len() <= spans_max { 200 } else { 413 };
            told.0.extend(names.into_iter().take_while(|_| status == 200));
            let answer = format!("HTTP/1.1 {status} X\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("it listens");
        }
    }

    fn wake_of(phases: usize) -> LedgerEvent {
        let phase = |number| LedgerPhase { name: format!("phase {number}"), micros: 1 };
        LedgerEvent {
            app: "web".to_owned(),
            kind: "wake".to_owned(),
            phases: (0..phases).map(phase).collect(),
            ..LedgerEvent::default()
        }
    }

    /// Ten records of two spans each for who takes five at once, and one of seven among them.
    #[tokio::test]
    async fn what_is_too_large_is_told_in_halves_and_only_what_is_too_large_alone_is_lost() {
        let dir = tempfile::tempdir().expect("a directory");
        let ledger = Ledger::open_followed(dir.path(), otlp::is_told).expect("a thread");
        for number in 0..11 {
            ledger.enter(wake_of(if number == 4 { 6 } else { 1 }), None);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let endpoint = Endpoint { address, path: "/v1/traces".to_owned() };
        let mut told = (Vec::new(), 0);
        let is_counted = async {
            while ledger.tally().refused == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = follow(&ledger, "lcl", &endpoint) => {}
            () = takes(listener, 5, &mut told) => {}
            () = is_counted => {}
        }
        let (names, requests) = told;
        assert_eq!(names, ["wake", "phase 0"].repeat(10));
        assert_eq!(ledger.tally().refused, 1);
        // 11, 5, 2, 2; 2 with the large one, that one alone, and the other six one by one.
        assert_eq!(requests, 12);
    }

    #[tokio::test]
    async fn the_next_page_begins_with_the_length_that_was_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let endpoint = Endpoint { address, path: "/v1/traces".to_owned() };
        let (mut teller, page) = (Teller::default(), [const { 1 }; 16].map(wake_of));
        let mut told = (Vec::new(), 0);
        let mut seen = Vec::new();
        tokio::select! {
            () = takes(listener, 8, &mut told) => {}
            () = async {
                for _ in 0..2 {
                    assert_eq!(teller.tell_all(&endpoint, "lcl", &page).await, 0);
                    seen.push(teller.length.records);
                }
            } => {}
        }
        assert_eq!(seen, [4, 8], "eight were taken, and more is tried");
        // 16, 8 and four of 4; four of 4.
        assert_eq!(told.1, 2 + 4 + 4);
    }
}
