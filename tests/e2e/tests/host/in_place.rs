//! Upgrade in place: another server and another proxy take over, and nobody notices.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Entrance, Host, Process, get, holds_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};

use crate::faults::armed;
use crate::naps::{ECHO, SUSPENDS as RAW};
use crate::stage::{
    AWAKE, SNIPPET, SOON, check_answer, on, on_host, one_machine_of, private_app, shell_image,
    wait_asleep,
};

/// Changes to another protocol, in which it sends back what it gets.
const SWITCH: &str = "exec busybox nc -ll -p 8081 -e /bin/busybox sh -c '\
    while read -r line; do [ ${#line} -gt 1 ] || break; done; \
    printf \"HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: echo\\r\\n\\r\\n\"; \
    exec busybox cat'";
/// How long a new server may take until it looks for its proxy: it is tried before, and its predecessor ends.
const FOLLOWED: Duration = Duration::from_secs(180);
/// How often a proxy may be too late altogether.
const LATE_ROUNDS: usize = 5;
/// Listens some seconds after its start.
const LATE: &str = "busybox sleep 3; exec busybox nc -ll -p 8081 -e /bin/busybox sh -c \
    'read -r line; printf \"HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\n\\r\\nlate\"'";
const DATAGRAMS: &str = "\
[env]
  UDP_PORT = '9999'
[[services]]
  protocol = 'udp'
  internal_port = 9999
  auto_stop_machines = 'off'
  [[services.ports]]
    port = 5300
";

#[test]
fn two_upgrades_in_a_row_fail_nobody() {
    on_host(|host| {
        let web = target(&private_app(host, "web", AWAKE)?, 80)?;
        let raw = app(host, "raw", ECHO, RAW, 5432)?;
        let switched = app(host, "switched", SWITCH, AWAKE, 80)?;
        let udp = crate::stage::hello_image(host)?;
        let udp = target(&one_machine_of(host, "udp", &udp, DATAGRAMS)?, 5300)?;
        let mut early = [connect(host, raw)?, switch(host, switched)?];
        let questions = host.inside(|| Ok(UdpSocket::bind("[::]:0")?))?;
        questions.connect(udp)?;
        questions.set_read_timeout(Some(SOON))?;
        let ids = [id(host, "web")?, id(host, "raw")?];
        under_load(host, web, |host| {
            for number in 1..=2 {
                let slow = thread::scope(|scope| {
                    let enter = host.entrance()?;
                    let slow = scope.spawn(move || {
                        enter.enter()?;
                        get(web, "/sleep?ms=3000", SOON)
                    });
                    answers(&questions)?;
                    let before = (host.server_process()?.pid, proxies(host));
                    let release = release(host, &format!("release-{number}"))?;
                    let told = host.upgrade(&release)?;
                    ensure!(told.contains("was replaced by"), "another text: {told}");
                    let after = (host.server_process()?.pid, proxies(host));
                    ensure!(before.0 != after.0, "the same server");
                    ensure!(
                        before.1.iter().any(|old| after.1.contains(old)),
                        "its connections ended"
                    );
                    answers(&questions)?;
                    slow.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })?;
                check_answer(&slow, "slept")?;
                for stream in &mut early {
                    echoes(stream, "from before")?;
                }
                echoes(&mut connect(host, raw)?, "from now")?;
                echoes(&mut switch(host, switched)?, "from now")?;
            }
            Ok(())
        })?;
        // The first release's proxy has them still; the second's has nobody.
        for stream in &mut early {
            echoes(stream, "still")?;
        }
        ensure!(ids == [id(host, "web")?, id(host, "raw")?], "other Machines");
        Ok(())
    });
}

#[test]
fn a_machine_sleeps_under_connections_of_the_former_proxy_and_their_next_byte_wakes_it() {
    on_host(|host| {
        let raw = app(host, "raw", ECHO, RAW, 5432)?;
        let mut stream = connect(host, raw)?;
        echoes(&mut stream, "begin")?;
        let release = release(host, "release")?;
        host.upgrade(&release)?;
        for round in 0..2 {
            host.wait_all("raw", "suspended", SOON)?;
            echoes(&mut stream, &format!("awake again {round}"))?;
        }
        // Who says something now and then in the former one keeps it awake in the new one.
        holds_for("a connection in use", Duration::from_secs(3), || {
            echoes(&mut stream, "in use")?;
            Ok(host.states("raw")? == ["started"])
        })?;
        ensure!(proxies(host).len() == 2, "the former proxy has ended");
        host.fly(&["why", "raw"])?.says(&["callers of raw now", "(raw TCP) for "])?;
        let log = host.data_dir().join("proxy.log");
        wait_until("the former proxy's words", SOON, || {
            let said = std::fs::read_to_string(&log)?;
            Ok(said.contains("another proxy has the listeners left=1").then_some(()))
        })?;
        let machine = host.machines("raw")?.pop().context("no Machine")?;
        ensure!(machine.events("launch") == 1, "it was started anew: {machine:?}");
        Ok(())
    });
}

/// A server that starts knows of its Machines one after the other.
#[test]
fn a_server_that_is_killed_and_started_cuts_nobody_off_from_a_former_proxy() {
    on_host(|host| {
        let web = target(&private_app(host, "web", AWAKE)?, 80)?;
        let mut early = socket(host, web)?;
        said_back(&mut early, "before")?;
        let release = release(host, "release")?;
        host.upgrade(&release)?;
        for _ in 0..3 {
            host.kill_server()?;
            host.start_server()?;
            said_back(&mut early, "still")?;
        }
        ensure!(proxies(host).len() == 2, "the former proxy has ended");
        Ok(())
    });
}

#[test]
fn who_waits_for_a_start_is_answered_by_the_former_proxy_while_the_new_one_serves() {
    on_host(|host| {
        let late = app(host, "late", LATE, SNIPPET, 80)?;
        wait_asleep(host, "late")?;
        let enter = host.entrance()?;
        let answer =
            thread::scope(|scope| {
                let call = scope.spawn(move || {
                    enter.enter()?;
                    get(late, "/", SOON)
                });
                wait_until("a start", SOON, || {
                    Ok((host.states("late")? != ["stopped"]).then_some(()))
                })?;
                let release = release(host, "release")?;
                host.upgrade(&release)?;
                call.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })?;
        check_answer(&answer, "late")
    });
}

/// One that greets after the new server has given up to wait for it before it goes on.
#[test]
fn a_proxy_that_greets_the_new_server_late_is_replaced_and_what_was_said_of_it_is_true() {
    on_host(|host| {
        let raw = app(host, "raw", ECHO, RAW, 5432)?;
        for round in 0..LATE_ROUNDS {
            let mut early = connect(host, raw)?;
            echoes(&mut early, "before")?;
            let old = host.perch_processes("proxy").pop().context("no proxy")?.pid;
            let release = release(host, &format!("release-{round}"))?;
            let said = upgrade_beside_stopped(host, old, &release)?;
            if said.contains("; proxy ") && said.contains("1 connections end in the former one") {
                ensure!(host.perch_processes("proxy").len() == 1, "no other proxy: {said}");
                echoes(&mut early, "still")?;
                return echoes(&mut connect(host, raw)?, "from now");
            }
            // On a machine that is short of time it may have been too late even for that.
            ensure!(said.contains("; its proxy was started anew"), "another text: {said}");
            ensure!(!proxies(host).contains(&old), "it serves on, and that was not said: {said}");
        }
        bail!("the proxy was never in time to be replaced");
    });
}

/// Stops a proxy until the new server goes on without it.
fn upgrade_beside_stopped(host: &mut Host, proxy: i32, release: &Path) -> Result<String> {
    let (log, proxy) = (host.server_log(), Pid::from_raw(proxy).context("0 is no process")?);
    let seen = std::fs::read_to_string(&log)?.len();
    kill_process(proxy, Signal::STOP)?;
    thread::scope(|scope| {
        let upgrade = scope.spawn(|| host.upgrade(release));
        let waited = wait_until("the new server to go on", FOLLOWED, || {
            let said = std::fs::read_to_string(&log)?;
            let goes_on = said.get(seen..).unwrap_or_default().contains("does not answer yet");
            Ok((goes_on || upgrade.is_finished()).then_some(()))
        });
        // It may have been killed by now.
        kill_process(proxy, Signal::CONT).ok();
        let said = join(upgrade);
        waited.and(said)
    })
}

#[test]
fn an_upgrade_that_cannot_be_leaves_everything_as_it_was_and_says_why() {
    on_host(|host| {
        let web = target(&private_app(host, "web", AWAKE)?, 80)?;
        let raw = app(host, "raw", ECHO, RAW, 5432)?;
        let mut early = connect(host, raw)?;
        let before = (host.server_process()?.pid, proxies(host));
        under_load(host, web, |host| {
            // Signals name no program: it is the one that the server was started from.
            for (name, script, why) in [
                ("deaf", "exit 7", "it cannot take over"),
                ("old", "echo perch-server 0.0.1 0", "understands the store up to schema 0"),
                (
                    "dies",
                    "case \"$*\" in *--trial*) echo perch-server 9.9.9 1000;; *) exit 3;; esac",
                    "perch 9.9.9 ended",
                ),
            ] {
                let program = script_at(host, name, script)?;
                let error =
                    host.upgrade_to(&program).err().with_context(|| format!("{name} took over"))?;
                ensure!(format!("{error:#}").contains(why), "{name}: another reason: {error:#}");
                ensure!(host.server_process()?.pid == before.0, "{name}: another server");
                echoes(&mut early, name)?;
            }
            ensure!(proxies(host) == before.1, "another proxy");
            host.fly(&["apps", "list"])?.says(&["web", "raw"])?;
            let release = release(host, "release")?;
            host.upgrade(&release)?;
            echoes(&mut early, "after all")
        })?;
        host.stop_server()?;
        let data = host.data_dir().to_string_lossy().into_owned();
        let none = host.perch(&["server", "--upgrade", "--data-dir", &data])?;
        let why = none.fails()?;
        ensure!(why.contains("no server runs with"), "another reason: {why}");
        Ok(())
    });
}

#[test]
fn what_the_server_had_started_before_a_failed_upgrade_leaves_no_zombie() {
    on_host(|host| {
        let dies = "case \"$*\" in *--trial*) echo perch-server 9.9.9 1000;; *) exit 3;; esac";
        let program = script_at(host, "dies", dies)?;
        ensure!(host.upgrade_to(&program).is_err(), "it took over");
        let proxy = host.kill_proxy()?;
        let is_left = |it: &Process| it.pid == proxy.pid || it.state == 'Z';
        let none = || Ok((!host.processes().iter().any(is_left)).then_some(()));
        wait_until("ended children are reaped", Duration::from_secs(30), none)
    });
}

#[test]
fn a_deploy_and_sleepers_do_not_mind_an_upgrade() {
    on_host(|host| {
        private_app(host, "web", AWAKE)?;
        let quotes = target(&private_app(host, "quotes", SNIPPET)?, 80)?;
        wait_asleep(host, "quotes")?;
        let done = AtomicBool::new(false);
        let dir = host.dir().join("web");
        let releases = [release(host, "release-1")?, release(host, "release-2")?];
        let mut command = host.fly_command(&dir, &["deploy"]);
        thread::scope(|scope| {
            let deploys = scope.spawn(|| {
                let mut count = 0;
                while !done.load(Ordering::SeqCst) || count == 0 {
                    let output = command.output()?;
                    let said = String::from_utf8_lossy(&output.stderr).into_owned();
                    ensure!(output.status.success(), "deploy {count} failed: {said}");
                    count += 1;
                }
                Ok(())
            });
            let upgraded = releases.iter().try_for_each(|release| host.upgrade(release).map(drop));
            done.store(true, Ordering::SeqCst);
            upgraded.and(join(deploys))
        })?;
        let answer = host.inside(|| get(quotes, "/", SOON))?;
        check_answer(&answer, "")?;
        ensure!(host.states("web")?.iter().all(|state| state == "started"), "not all are up");
        Ok(())
    });
}

#[test]
fn a_server_that_a_manager_restarts_leaves_its_connections_to_the_former_proxy() {
    on_host(|host| {
        host.stop_server()?;
        host.use_service_manager()?;
        host.start_server()?;
        let web = target(&private_app(host, "web", AWAKE)?, 80)?;
        let raw = app(host, "raw", ECHO, RAW, 5432)?;
        let mut early = connect(host, raw)?;
        let socket = host.socket();
        under_load(host, web, |host| {
            let release = release(host, "release")?;
            host.leave_server()?;
            let waits = std::os::unix::net::UnixStream::connect(&socket);
            ensure!(waits.is_ok(), "the API refuses: {waits:?}");
            host.set_binary(&release);
            host.start_server()?;
            wait_until("another proxy", SOON, || {
                Ok((host.perch_processes("proxy").len() == 1).then_some(()))
            })?;
            echoes(&mut early, "from before")?;
            echoes(&mut connect(host, raw)?, "from now")
        })?;
        drop(early);
        wait_until("one proxy", SOON, || Ok((proxies(host).len() == 1).then_some(())))?;
        let left = || {
            let names = std::fs::read_dir(host.data_dir())?.flatten().map(|it| it.file_name());
            anyhow::Ok(names.filter(|name| name.to_string_lossy().starts_with("px-")).count())
        };
        wait_until("nothing of it to be left", SOON, || Ok((left()? == 0).then_some(())))
    });
}

#[test]
fn whoever_ends_at_whatever_step_of_an_upgrade_the_next_server_goes_on() {
    let Ok(faults) = tempfile::Builder::new().prefix("perch-faults-").tempdir() else {
        panic!("no directory");
    };
    on(
        || armed(&faults, ""),
        |host| {
            let web = target(&private_app(host, "web", AWAKE)?, 80)?;
            let raw = app(host, "raw", ECHO, RAW, 5432)?;
            let list = host.perch(&["faults"])?.ok()?;
            let steps = list.lines().filter_map(|line| line.strip_suffix(" upgrade"));
            let before = id(host, "raw")?;
            for step in steps {
                let mut early = connect(host, raw)?;
                echoes(&mut early, "before")?;
                std::fs::write(faults.path().join(step), "")?;
                let release = release(host, step)?;
                // It is done, or it is not; who asks may have nobody to hear.
                let upgraded = host.upgrade(&release);
                ensure!(
                    !faults.path().join(step).exists(),
                    "nobody has passed {step}: {upgraded:?}"
                );
                if upgraded.is_err() {
                    host.find_server()?;
                }
                check_answer(&host.inside(|| get(web, "/", SOON))?, "").context(step.to_owned())?;
                echoes(&mut connect(host, raw)?, "after").context(step.to_owned())?;
                if step.starts_with("server.") {
                    echoes(&mut early, "still").context(step.to_owned())?;
                }
                host.fly(&["apps", "list"])?.says(&["web", "raw"])?;
            }
            ensure!(before == id(host, "raw")?, "another Machine");
            Ok(())
        },
    );
}

fn target(address: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse::<IpAddr>()?, port))
}

fn app(host: &Host, name: &str, script: &str, sections: &str, port: u16) -> Result<SocketAddr> {
    let image = shell_image(host, name, script)?;
    target(&one_machine_of(host, name, &image, sections)?, port)
}

fn id(host: &Host, app: &str) -> Result<String> {
    Ok(host.machines(app)?.pop().context("no Machine")?.id)
}

/// The same program as another file, as a package would bring it.
pub(crate) fn release(host: &Host, name: &str) -> Result<PathBuf> {
    let path = host.dir().join(name);
    std::fs::copy(host.binary(), &path)?;
    Ok(path)
}

fn script_at(host: &Host, name: &str, script: &str) -> Result<PathBuf> {
    let path = host.dir().join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    Ok(path)
}

/// Process ids of all proxies, of whichever release.
fn proxies(host: &Host) -> Vec<i32> {
    let is_proxy = |args: &[String]| args.get(1).is_some_and(|role| role == "proxy");
    let all = host.processes().into_iter();
    all.filter(|it| it.state != 'Z' && is_proxy(&it.args)).map(|it| it.pid).collect()
}

fn connect(host: &Host, target: SocketAddr) -> Result<TcpStream> {
    let stream = host.inside(|| Ok(TcpStream::connect_timeout(&target, SOON)?))?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn switch(host: &Host, target: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(host, target)?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")?;
    let head = head(&mut stream)?;
    ensure!(head.starts_with("HTTP/1.1 101 "), "not switched: {head}");
    Ok(stream)
}

/// A WebSocket of the example app.
fn socket(host: &Host, target: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(host, target)?;
    stream.write_all(
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )?;
    let head = head(&mut stream)?;
    ensure!(head.starts_with("HTTP/1.1 101 "), "not switched: {head}");
    Ok(stream)
}

/// Sends a short message, masked with zeros, and reads the one that comes back, which has its number before it.
fn said_back(stream: &mut TcpStream, text: &str) -> Result<()> {
    let length = 0x80 | u8::try_from(text.len())?;
    stream.write_all(&[&[0x81, length, 0, 0, 0, 0], text.as_bytes()].concat())?;
    let mut head = [0; 2];
    stream.read_exact(&mut head).with_context(|| format!("`{text}` is not said back"))?;
    let mut said = vec![0; head[1].into()];
    stream.read_exact(&mut said)?;
    let said = (head[0], String::from_utf8_lossy(&said).into_owned());
    ensure!(said.0 == 0x81 && said.1.ends_with(text), "not `{text}` but: {said:?}");
    Ok(())
}

fn head(stream: &mut impl Read) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8(head)?)
}

fn echoes(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes())?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).with_context(|| format!("no echo of `{text}`"))?;
    ensure!(answer == text.as_bytes(), "another echo: {}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn answers(socket: &UdpSocket) -> Result<()> {
    socket.send(b"datagram")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).context("no answer to a datagram")?;
    ensure!(buffer[..length].ends_with(b"datagram"), "another answer");
    Ok(())
}

/// While `happens` happens, and until ten more calls of each are answered, somebody calls with a new connection each
/// time, and somebody on one that he keeps as long as he may. Every call is answered.
fn under_load(
    host: &mut Host,
    target: SocketAddr,
    happens: impl FnOnce(&mut Host) -> Result<()>,
) -> Result<()> {
    let (done, counts) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    let (enter, also) = (host.entrance()?, host.entrance()?);
    thread::scope(|scope| {
        let fresh = scope.spawn(|| {
            repeat(&enter, &done, &counts[0], || check_answer(&get(target, "/", SOON)?, ""))
        });
        let kept = scope.spawn(|| {
            let mut stream = None;
            repeat(&also, &done, &counts[1], || ask_kept(&mut stream, target))
        });
        let result = happens(host).and_then(|()| {
            let before = counts.each_ref().map(|count| count.load(Ordering::SeqCst));
            wait_until("ten more calls", SOON, || {
                let now = counts.each_ref().map(|count| count.load(Ordering::SeqCst));
                let ended = fresh.is_finished() || kept.is_finished();
                let enough = before.iter().zip(now).all(|(before, now)| before + 10 < now);
                Ok((ended || enough).then_some(()))
            })
        });
        done.store(true, Ordering::SeqCst);
        let (fresh, kept) = (join(fresh), join(kept));
        fresh.context("new connections")?;
        kept.context("a kept connection")?;
        result
    })
}

fn repeat(
    enter: &Entrance,
    done: &AtomicBool,
    count: &AtomicUsize,
    mut call: impl FnMut() -> Result<()>,
) -> Result<()> {
    enter.enter()?;
    while !done.load(Ordering::SeqCst) {
        call().with_context(|| format!("call {}", count.load(Ordering::SeqCst)))?;
        count.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

/// Asks once; a connection that was told to close is given up, and no other.
fn ask_kept(kept: &mut Option<TcpStream>, target: SocketAddr) -> Result<()> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => TcpStream::connect_timeout(&target, SOON)?,
    };
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    let head = head(&mut stream)?.to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200 "), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.context("no length")?.trim().parse()?;
    stream.read_exact(&mut vec![0; length])?;
    if head.contains("connection: close") {
        match stream.read(&mut [0]) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => bail!("reset: {error}"),
            other => bail!("more than was said: {other:?}"),
        }
    }
    *kept = Some(stream);
    Ok(())
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
