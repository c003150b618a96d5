//! Sleep under open connections: raw TCP that rests is no load, and its next byte wakes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, holds_for, wait_until};

use crate::stage::{SOON, on_host, one_machine_of, shell_image};

pub(crate) const SUSPENDS: &str = "\
[[services]]
  protocol = 'tcp'
  internal_port = 5432
  auto_stop_machines = 'suspend'
  auto_start_machines = true
  min_machines_running = 0
  [[services.ports]]
    port = 5432
";

/// Sends back what it gets, and the end of it.
pub(crate) const ECHO: &str = "exec busybox nc -ll -p 5432 -e /bin/busybox cat";
/// Answers a line only after thrice the time in which it would be put to sleep.
const SLOW: &str =
    "exec busybox nc -ll -p 5432 -e /bin/busybox sh -c 'read line; sleep 3; echo done'";
/// Greets, and works.
const BUSY: &str = "busybox sh -c 'while true; do :; done' & \
    exec busybox nc -ll -p 5432 -e /bin/busybox cat";

#[test]
fn a_machine_sleeps_under_its_open_connections_and_their_next_byte_wakes_it() {
    on_host(|host| {
        let target = app(host, ECHO)?;
        let mut streams = Vec::new();
        for _ in 0..20 {
            let mut stream = connect(host, target)?;
            echoes(&mut stream, b"begin")?;
            streams.push(stream);
        }
        host.wait_all("db", "suspended", SOON)?;
        let resumes = || -> Result<usize> {
            Ok(host.machines("db")?.pop().context("no Machine")?.events("resume"))
        };
        // Between the first calls it may have slept as well.
        let before = resumes()?;
        echoes(&mut streams[0], b"one more query, after a nap")?;
        wait_until("its resume", SOON, || Ok((before < resumes()?).then_some(())))?;
        ensure!(resumes()? == before + 1, "woken more than once");
        for stream in &mut streams[1..3] {
            echoes(stream, b"others, soon after it")?;
        }
        host.wait_all("db", "suspended", SOON)?;

        // Pools that close say goodbye, and wake nobody; nor does a reset.
        for stream in streams.drain(10..15) {
            // The end goes with it: what lies between two calls is the scheduler's.
            rustix::net::send(&stream, b"X\0\0\0\x04", rustix::net::SendFlags::MORE)?;
        }
        drop(streams.drain(5..10));
        holds_for("nobody is woken by an end", Duration::from_secs(1), || {
            Ok(host.states("db")? == ["suspended"])
        })?;

        // Nor is the server needed.
        host.kill_server()?;
        for stream in &mut streams {
            echoes(stream, b"without a server")?;
        }
        host.start_server()?;
        host.wait_all("db", "suspended", SOON)?;
        for stream in &mut streams {
            echoes(stream, b"and with the next one")?;
        }
        Ok(())
    });
}

#[test]
fn an_answer_that_is_owed_is_waited_for() {
    on_host(|host| {
        let target = app(host, SLOW)?;
        let mut stream = connect(host, target)?;
        stream.write_all(b"a slow query\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        // Frozen, it would never come.
        ensure!(answer == "done\n", "{answer:?}");
        Ok(())
    });
}

#[test]
fn a_program_at_work_is_not_frozen_under_a_connection_that_rests() {
    on_host(|host| {
        let target = app(host, BUSY)?;
        let mut stream = connect(host, target)?;
        echoes(&mut stream, b"begin")?;
        holds_for("a program at work stays awake", Duration::from_secs(4), || {
            Ok(host.states("db")? == ["started"])
        })?;
        drop(stream);
        // Nobody is connected any more, and its own work is none of ours.
        host.wait_all("db", "suspended", SOON)
    });
}

pub(crate) fn app(host: &Host, program: &str) -> Result<SocketAddr> {
    let image = shell_image(host, "db", program)?;
    let address = one_machine_of(host, "db", &image, SUSPENDS)?;
    Ok(SocketAddr::new(address.parse::<IpAddr>()?, 5432))
}

pub(crate) fn connect(host: &Host, target: SocketAddr) -> Result<TcpStream> {
    let stream = host.inside(|| Ok(TcpStream::connect_timeout(&target, SOON)?))?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

pub(crate) fn echoes(stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes)?;
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).context("not answered")?;
    ensure!(answer == bytes, "not echoed: {answer:?}");
    Ok(())
}
