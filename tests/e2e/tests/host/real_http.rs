//! HTTP servers that people really run, slept past their own idle timeouts: Node, uvicorn and gunicorn.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, holds_for, node_image, python_image};

use crate::stage::{SOON, fly_toml, on_host};

/// The program's keep-alive of a connection without a request; the sleep is longer.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

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
                   --timeout-keep-alive 2 app:asgi'\n";
        let address = web(host, "uvicorn", &python_image()?, run)?;
        slept_past_keep_alive(host, "uvicorn", address)
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

/// Callers by connections that they keep and by new ones, before and after a sleep that outlasts the program's patience
/// with idle connections.
fn slept_past_keep_alive(host: &Host, app: &str, address: SocketAddr) -> Result<()> {
    let mut kept =
        host.inside(|| (0..8).map(|_| Caller::connect(address)).collect::<Result<Vec<_>>>())?;
    for round in 0..2 {
        for caller in &mut kept {
            caller.get("/").with_context(|| format!("round {round}, a kept connection"))?;
        }
        host.wait_all(app, "suspended", SOON)?;
        holds_for("asleep", KEEP_ALIVE + Duration::from_millis(300), || {
            Ok(host.states(app)? == ["suspended"])
        })?;
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

fn web(host: &Host, app: &str, image: &str, sections: &str) -> Result<SocketAddr> {
    let service = "[http_service]\n  internal_port = 8080\n  force_https = false\n  \
                   auto_stop_machines = 'suspend'\n  auto_start_machines = true\n  \
                   min_machines_running = 0\n  processes = ['app']\n";
    let dir = host.app_dir(app, &fly_toml(app, image, &format!("{service}{sections}")))?;
    let launch = ["launch", "--flycast", "--copy-config", "--name", app, "--ha=false", "--yes"];
    host.fly_in(&dir, &launch)?.ok()?;
    let ip: IpAddr = host.flycast(app)?.parse().context("its address")?;
    let address = SocketAddr::new(ip, 80);
    let up = host.inside(|| Caller::connect(address)?.get("/"));
    up.with_context(|| {
        let said = host.fly(&["logs", "--no-tail", "-a", app]);
        said.map_or_else(|error| format!("{error:#}"), |output| output.to_string())
    })?;
    Ok(address)
}

/// A caller with one connection that nothing reopens.
struct Caller(BufReader<TcpStream>);

impl Caller {
    fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn get(&mut self, path: &str) -> Result<String> {
        self.ask(path)?;
        self.answer()
    }

    fn ask(&mut self, path: &str) -> Result<()> {
        write!(self.0.get_mut(), "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").context("asking")
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.0.read_line(&mut line)? != 0, "the connection was closed");
        Ok(line.trim_end().to_owned())
    }

    /// The head of an answer, which must be a good one: how long its body is, unless it comes in chunks.
    fn head(&mut self, status: &str) -> Result<Option<usize>> {
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

    fn chunk(&mut self) -> Result<String> {
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
