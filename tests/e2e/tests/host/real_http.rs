//! HTTP servers that people really run, slept past their own idle timeouts: Node, uvicorn and gunicorn; and
//! over a sleep, a WebSocket and a stream of events.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, holds_for, node_image, python_image, wait_until};

use crate::stage::{SOON, on_host, one_machine_of};

/// The program's keep-alive of a connection without a request; the sleep is longer.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long it is asleep at least.
const ASLEEP: Duration = Duration::from_secs(8);

#[test]
fn node_slept_past_its_keep_alive_resets_nobody() {
    on_host(|host| {
        let env = format!("[env]\n  KEEP_ALIVE_MS = '{}'\n", KEEP_ALIVE.as_millis());
        let address = web(host, "node", &node_image()?, &env)?;
        slept_past_keep_alive(host, "node", address)
    });
}

#[test]
fn uvicorn_slept_past_its_keep_alive_resets_nobody() {
    on_host(|host| {
        let run = "[processes]\n  app = 'python3 -m uvicorn --host 0.0.0.0 --port 8080 \
                   --timeout-keep-alive 5 app:asgi'\n";
        let address = web(host, "uvicorn", &python_image()?, run)?;
        slept_past_keep_alive(host, "uvicorn", address)
    });
}

#[test]
fn a_websocket_and_a_stream_of_events_on_a_raw_port_stay_open_over_a_sleep() {
    on_host(|host| {
        let run = "[processes]\n  app = 'python3 -m uvicorn --host 0.0.0.0 --port 8080 app:asgi'\n";
        let raw = "[[services]]\n  protocol = 'tcp'\n  internal_port = 8080\n  processes = ['app']\n  \
                   auto_stop_machines = 'suspend'\n  auto_start_machines = true\n  \
                   min_machines_running = 0\n  ports = [{ port = 80 }]\n";
        let address = deployed(host, "live", &python_image()?, &format!("{raw}{run}"))?;
        let connect = || host.inside(|| Caller::connect(address));
        let (mut socket, mut events, mut plain) = (connect()?, connect()?, connect()?);
        socket.upgrade()?;
        let before = socket.echo("one")?;
        events.ask("/events")?;
        ensure!(events.head("200")?.is_none(), "a stream with a length");
        ensure!(events.chunk()?.contains("hello"), "no first event");
        host.wait_all("live", "suspended", SOON)?;
        ensure!(socket.echo("one")? == before, "another process, or another message");
        host.wait_all("live", "suspended", SOON)?;
        plain.get("/publish?news")?;
        ensure!(events.chunk()?.contains("data: news"), "another event");
        Ok(())
    });
}

#[test]
fn gunicorn_answers_after_a_sleep() {
    on_host(|host| {
        let run = "[processes]\n  app = 'python3 -m gunicorn --bind 0.0.0.0:8080 --workers 2 \
                   --timeout 0 --worker-tmp-dir /dev/shm app:wsgi'\n";
        let address = web(host, "gunicorn", &python_image()?, run)?;
        slept_past_keep_alive(host, "gunicorn", address)
    });
}

/// A server whose fork is killed when the clock has made a leap, as one is that its master takes for dead. A sibling lives on.
const FORKING: &str = "\
import http.server, os, signal, threading, time
def work():
    while True:
        before = time.monotonic()
        time.sleep(0.01)
        if time.monotonic() - before > 0.7:
            os.kill(os.getpid(), signal.SIGKILL)
if os.environ.get('SIBLING') and os.fork() == 0:
    while True:
        time.sleep(1000)
def keep():
    while True:
        child = os.fork()
        if child == 0:
            work()
        os.waitpid(child, 0)
threading.Thread(target=keep).start()
http.server.test(http.server.SimpleHTTPRequestHandler, http.server.ThreadingHTTPServer, port=8080, bind='0.0.0.0')
";

#[test]
fn a_worker_that_does_not_outlive_a_thaw_is_an_event_with_advice() {
    on_host(|host| {
        let (script, kernel) = (base64(host, FORKING)?, host.run("uname", &["-r"])?.ok()?);
        let numbers: Vec<u32> = kernel.split('.').map_while(|it| it.parse().ok()).collect();
        // Of one of several only a kernel that tells how they ended lets us know.
        let (sibling, lost) = match (6, 15) <= (numbers[0], numbers[1]) {
            true => ("SIBLING = '1'", "lost 1 of 2 workers (signal 9)"),
            false => ("", "lost 1 of 1 workers"),
        };
        let run = format!(
            "[env]\n  {sibling}\n[processes]\n  app = 'python3 /srv/forking.py'\n[[files]]\n  \
             guest_path = '/srv/forking.py'\n  raw_value = '{script}'\n"
        );
        let address = web(host, "forking", &python_image()?, &run)?;
        for _ in 0..2 {
            host.wait_all("forking", "suspended", SOON)?;
            // The fork's clock leaps.
            holds_for("asleep", Duration::from_secs(1), || {
                Ok(host.states("forking")? == ["suspended"])
            })?;
            host.inside(|| Caller::connect(address)?.get("/"))?;
        }
        let machine = wait_until("the event", SOON, || {
            let machine = host.machines("forking")?.pop().context("a Machine")?;
            Ok((0 < machine.events("workers_ended")).then_some(machine))
        })?;
        let said = host.fly(&["machine", "status", &machine.id, "-a", "forking"])?.ok()?;
        ensure!(said.contains(lost) && said.contains("--timeout 0"), "{said}");
        Ok(())
    });
}

pub(crate) fn base64(host: &Host, text: &str) -> Result<String> {
    let path = host.dir().join("script.py");
    std::fs::write(&path, text)?;
    Ok(host.run("base64", &["-w0", &path.to_string_lossy()])?.ok()?.trim().to_owned())
}

/// Naps of each server.
fn rounds() -> u32 {
    if std::env::var_os("PERCH_LONG").is_some() { 5 } else { 1 }
}

/// Callers by connections that they keep and by new ones, before and after a sleep that outlasts the program's patience
/// with idle connections.
fn slept_past_keep_alive(host: &Host, app: &str, address: SocketAddr) -> Result<()> {
    let mut kept =
        host.inside(|| (0..8).map(|_| Caller::connect(address)).collect::<Result<Vec<_>>>())?;
    for round in 0..rounds() {
        for caller in &mut kept {
            caller.get("/").with_context(|| format!("round {round}, a kept connection"))?;
        }
        host.wait_all(app, "suspended", SOON)?;
        holds_for("asleep", ASLEEP, || Ok(host.states(app)? == ["suspended"]))?;
    }
    // All at once, so that each needs a connection of its own to the program.
    for caller in &mut kept {
        caller.ask("/")?;
    }
    for caller in &mut kept {
        caller.answer()?;
    }
    Ok(())
}

pub(crate) fn web(host: &Host, app: &str, image: &str, sections: &str) -> Result<SocketAddr> {
    let service = "[http_service]\n  internal_port = 8080\n  force_https = false\n  \
                   auto_stop_machines = 'suspend'\n  auto_start_machines = true\n  \
                   min_machines_running = 0\n  processes = ['app']\n";
    deployed(host, app, image, &format!("{service}{sections}"))
}

fn deployed(host: &Host, app: &str, image: &str, sections: &str) -> Result<SocketAddr> {
    let ip: IpAddr = one_machine_of(host, app, image, sections)?.parse().context("its address")?;
    let address = SocketAddr::new(ip, 80);
    let up = host.inside(|| Caller::connect(address)?.get("/"));
    up.with_context(|| {
        let said = host.fly(&["logs", "--no-tail", "-a", app]);
        said.map_or_else(|error| format!("{error:#}"), |output| output.to_string())
    })?;
    Ok(address)
}

/// A caller with one connection that nothing reopens.
pub(crate) struct Caller(BufReader<TcpStream>);

impl Caller {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Makes this connection a WebSocket.
    pub(crate) fn upgrade(&mut self) -> Result<()> {
        self.0.get_mut().write_all(
            b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )?;
        self.head("101").map(drop)
    }

    /// Sends a short text and returns the text that comes back.
    pub(crate) fn echo(&mut self, text: &str) -> Result<String> {
        let length = u8::try_from(text.len())?;
        // A whole text; masked, as clients must, with zeros.
        let head = [0x81, 0x80 | length, 0, 0, 0, 0];
        self.0.get_mut().write_all(&[&head, text.as_bytes()].concat()).context("sending")?;
        self.text()
    }

    /// Sends a WebSocket's ping and waits for its pong.
    pub(crate) fn ping(&mut self) -> Result<()> {
        self.0.get_mut().write_all(&[0x89, 0x80, 0, 0, 0, 0]).context("sending a ping")?;
        let mut head = [0; 2];
        self.0.read_exact(&mut head).context("waiting for the pong")?;
        ensure!(head == [0x8a, 0], "no pong comes back: {head:?}");
        Ok(())
    }

    /// Waits for a WebSocket's ping and answers it.
    pub(crate) fn pong(&mut self) -> Result<()> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).context("waiting for a ping")?;
        ensure!(head[0] == 0x89 && head[1] < 126, "no ping comes: {head:?}");
        let mut said = vec![0; usize::from(head[1])];
        self.0.read_exact(&mut said).context("reading a ping")?;
        let head = [0x8a, 0x80 | head[1], 0, 0, 0, 0];
        self.0.get_mut().write_all(&[&head, &said[..]].concat()).context("sending a pong")
    }

    /// The next short text of a WebSocket.
    pub(crate) fn text(&mut self) -> Result<String> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).context("waiting for what comes back")?;
        ensure!(head[0] == 0x81 && head[1] < 126, "no short text comes back: {head:?}");
        self.exact(usize::from(head[1]))
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<String> {
        self.ask(path)?;
        self.answer()
    }

    pub(crate) fn ask(&mut self, path: &str) -> Result<()> {
        write!(self.0.get_mut(), "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").context("asking")
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.0.read_line(&mut line)? != 0, "the connection was closed");
        Ok(line.trim_end().to_owned())
    }

    /// The head of an answer, which must be a good one: how long its body is, unless it comes in chunks.
    pub(crate) fn head(&mut self, status: &str) -> Result<Option<usize>> {
        let first = self.line()?;
        ensure!(first.starts_with(&format!("HTTP/1.1 {status}")), "answered with {first}");
        let mut length = None;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            let Some((name, value)) = line.split_once(':') else { return Ok(length) };
            if name == "content-length" {
                length = Some(value.trim().parse()?);
            }
        }
    }

    fn answer(&mut self) -> Result<String> {
        match self.head("200")? {
            Some(length) => self.exact(length),
            None => {
                let mut body = String::new();
                // To the empty chunk that is the last.
                loop {
                    let chunk = self.chunk()?;
                    if chunk.is_empty() {
                        return Ok(body);
                    }
                    body += &chunk;
                }
            }
        }
    }

    pub(crate) fn chunk(&mut self) -> Result<String> {
        let size = usize::from_str_radix(&self.line()?, 16).context("no size of a chunk")?;
        let chunk = self.exact(size)?;
        ensure!(self.line()?.is_empty(), "a chunk is longer than it says");
        Ok(chunk)
    }

    fn exact(&mut self, length: usize) -> Result<String> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(String::from_utf8(bytes)?)
    }
}
