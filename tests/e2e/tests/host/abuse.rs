//! Callers and programs that break the rules of HTTP: each hears the right status or is cut off, it costs the proxy little memory, and
//! another app is answered all the time.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Entrance, Host, Network, python_image, wait_until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::real_clients::web_service;
use crate::real_http::base64;
use crate::stage::{
    AWAKE, SOON, check_answer, hello_image, machine_processes, on, on_host, one_machine_of,
};

/// Of a head that never ends, just below what a head may have.
const STALLED: usize = 15 * 1024;
/// All of them, where the machine allows as many descriptors.
const STALLED_CALLERS: usize = 10_000;
/// This many Machines and the host; each has fewer connections than a caller may have.
const CALLING_MACHINES: usize = 4;
/// What a connection may cost while its head is not whole: 16 KiB of head, and 4 kB as who is held.
const STALLED_BYTES_MAX: usize = 20 * 1024;
/// What some connections may cost whatever is said on them: their buffers, and what the allocator keeps.
const FEW_BYTES_MAX: usize = 8 << 20;
const MANY: usize = 100 << 20;
const CHUNKS: usize = 1_000_000;

#[test]
fn thousands_of_callers_whose_heads_do_not_end_leave_others_their_places() {
    let quick = || Host::start_with(Network::Open, "caller_connections_per_second = 0\n");
    on(quick, |host| {
        let image = hello_image(host)?;
        let web: IpAddr = one_machine_of(host, "web", &image, AWAKE)?.parse()?;
        let calm = one_machine_of(host, "calm", &image, AWAKE)?;
        let dir = host.app_dir("callers", &crate::stage::fly_toml("callers", &image, AWAKE))?;
        host.fly(&["apps", "create", "callers"])?.ok()?;
        host.fly_in(&dir, &["deploy", "--ha=false"])?.ok()?;
        let count = CALLING_MACHINES.to_string();
        host.fly(&["scale", "count", &count, "-a", "callers", "--yes"])?.ok()?;
        host.wait_all("callers", "started", SOON)?;
        let mut sources = vec![host.entrance()?];
        for machine in host.machines("callers")? {
            let process = machine_processes(host, &machine.id).pop();
            sources.push(Entrance::of(&process.context("it does not run")?)?);
        }
        let (count, half) = allowed()?;
        let before = memory(host, "VmRSS")?;
        beside(host, &calm, || {
            let mut open = Vec::new();
            for source in &sources {
                let target = SocketAddr::new(web, 80);
                open.append(&mut source.inside(|| Ok(stall(target, count / sources.len())))?);
            }
            let cost = memory(host, "VmHWM")?.saturating_sub(before);
            let most = count.min(half) * STALLED_BYTES_MAX + FEW_BYTES_MAX;
            println!("{} of {count} are connected, {cost} bytes of {most}", open.len());
            ensure!(cost <= most, "{cost} bytes for {count} connections");
            // The one whom they call takes other callers, too: who is idle for longest makes room.
            wait_until("an answer among them", SOON, || {
                check_answer(&host.get(&web.to_string(), 80, "/")?, "Hello").map(Some)
            })
        })
    });
}

/// Connections that may be tried, and how many one app may have of all.
fn allowed() -> Result<(usize, usize)> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let descriptors =
        maximum.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    // Two for each connection of the proxy.
    Ok((STALLED_CALLERS.min(descriptors.saturating_sub(1000)), descriptors / 4))
}

/// So many connections on which nothing but the beginning of a head is said; without those that were refused.
fn stall(target: SocketAddr, count: usize) -> Vec<TcpStream> {
    let head = format!("GET / HTTP/1.1\r\nHost: web\r\nX-Long: {}", "x".repeat(STALLED));
    let connect = |_| {
        let mut stream = TcpStream::connect_timeout(&target, SOON).ok()?;
        stream.write_all(head.as_bytes()).ok()?;
        Some(stream)
    };
    (0..count).filter_map(connect).collect()
}

#[test]
fn heads_that_are_too_large_are_431_however_they_come() {
    on_host(|host| {
        let image = hello_image(host)?;
        let web = SocketAddr::new(one_machine_of(host, "web", &image, AWAKE)?.parse()?, 80);
        let calm = one_machine_of(host, "calm", &image, AWAKE)?;
        let before = memory(host, "VmRSS")?;
        beside(host, &calm, || {
            let check = |first: &str, piece: String, count: usize, wanted: &str| {
                let pieces = (0..count).map(|_| piece.as_bytes());
                let (answer, _) = call(host, web, [first.as_bytes()].into_iter().chain(pieces))?;
                let shown: String = answer.chars().take(300).collect();
                ensure!(answer.starts_with(wanted), "{wanted} is wanted, not: {shown}");
                anyhow::Ok(())
            };
            let get = "GET / HTTP/1.1\r\nHost: web\r\n";
            let line = format!("X-Line: {}\r\n", "x".repeat(1000));
            check(get, line.clone(), MANY / line.len(), "HTTP/1.1 431 ")?;
            check(get, "x".repeat(1000), MANY / 1000, "HTTP/1.1 431 ")?;
            check(get, "A: b\r\n".to_owned(), 1000, "HTTP/1.1 431 ")?;
            Ok(())
        })?;
        check_few(host, before)
    });
}

/// Answers by the path, and lies about what it sends.
const LIAR: &str = "\
import socket, threading
OK = b'HTTP/1.1 200 OK\\r\\n'
def answers(path, length):
    if path == '/count':
        yield OK + b'Content-Length: 7\\r\\n\\r\\n%07d' % length
    elif path == '/fine':
        yield OK + b'Content-Length: 4\\r\\n\\r\\nfine'
    elif path == '/short':
        yield OK + b'Content-Length: 10\\r\\n\\r\\nshort'
        yield None
    elif path == '/long':
        yield OK + b'Content-Length: 4\\r\\n\\r\\nlong' + OK + b'Content-Length: 8\\r\\n\\r\\nsmuggled'
    elif path == '/none':
        yield None
    elif path == '/garbage':
        yield b'hello to you\\r\\n\\r\\n'
        yield None
    elif path == '/before':
        yield b'HTTP/1.1 413 Content Too Large\\r\\nContent-Length: 3\\r\\n\\r\\nbig'
        yield None
    elif path == '/crumbs':
        yield OK + b'Transfer-Encoding: chunked\\r\\n\\r\\n'
        for _ in range(1000):
            yield b'1\\r\\nx\\r\\n' * 1000
        yield b'0\\r\\n\\r\\n'
    elif path == '/chunk':
        yield OK + b'Transfer-Encoding: chunked\\r\\n\\r\\n5\\r\\nhello\\r\\nzz\\r\\n'
    elif path == '/head':
        yield OK
        for _ in range(100000):
            yield b'X-Line: ' + b'x' * 1000 + b'\\r\\n'
def serve(stream):
    with stream, stream.makefile('rb') as lines:
        while line := lines.readline():
            path, length, sizes = line.split()[1].decode(), 0, False
            while (field := lines.readline()).strip():
                if field.lower().startswith(b'content-length:'):
                    length = int(field.split(b':')[1])
                sizes = sizes or field.lower().startswith(b'transfer-encoding:')
            if path != '/before':
                lines.read(length)
            while sizes and (size := int(lines.readline(), 16)):
                length += size
                lines.read(size + 2)
            if sizes:
                lines.readline()
            for piece in answers(path, length):
                if piece is None:
                    return
                stream.sendall(piece)
listener = socket.create_server(('0.0.0.0', 8080))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
";

#[test]
fn bodies_in_crumbs_pass_and_programs_that_lie_about_answers_harm_nobody_else() {
    on_host(|host| {
        let (service, script) = (web_service(8080, "off"), base64(host, LIAR)?);
        let sections = format!(
            "{service}[processes]\n  app = 'python3 /srv/liar.py'\n[[files]]\n  guest_path = \
             '/srv/liar.py'\n  raw_value = '{script}'\n"
        );
        let liar = one_machine_of(host, "liar", &python_image()?, &sections)?;
        let liar = SocketAddr::new(liar.parse()?, 80);
        let calm = one_machine_of(host, "calm", &hello_image(host)?, AWAKE)?;
        let get = |paths: &[&str]| {
            let (last, others) = paths.split_last().context("no path")?;
            let ask = |path: &&str| format!("GET {path} HTTP/1.1\r\nHost: liar\r\n\r\n");
            let mut text: String = others.iter().map(ask).collect();
            text += &format!("GET {last} HTTP/1.1\r\nHost: liar\r\nConnection: close\r\n\r\n");
            call(host, liar, [text.as_bytes()].into_iter())
        };
        wait_until("the program", SOON, || Ok(get(&["/fine"])?.0.ends_with("fine").then_some(())))?;
        let before = memory(host, "VmRSS")?;
        beside(host, &calm, || {
            // Cut, and not ended: a caller must not take it for all.
            let (answer, ended) = get(&["/short"])?;
            ensure!(answer.starts_with("HTTP/1.1 200 ") && !ended, "{answer}");
            ensure!(answer.ends_with("\r\n\r\nshort"), "{answer}");
            // What comes with a bad chunk is not passed on.
            let (answer, ended) = get(&["/chunk"])?;
            ensure!(!ended && !answer.contains("zz"), "{answer}");
            let (answers, ended) = get(&["/long", "/fine"])?;
            ensure!(ended && answers.ends_with("\r\n\r\nfine"), "{answers}");
            ensure!(answers.matches("HTTP/1.1 200 ").count() == 2, "{answers}");
            ensure!(!answers.contains("smuggled"), "{answers}");
            for path in ["/none", "/garbage", "/head"] {
                let (answer, ended) = get(&[path])?;
                ensure!(answer.starts_with("HTTP/1.1 502 ") && ended, "{path}: {answer}");
            }
            let post =
                format!("POST /before HTTP/1.1\r\nHost: liar\r\nContent-Length: {MANY}\r\n\r\n");
            let body = vec![b'x'; 1 << 20];
            let pieces = (0..MANY >> 20).map(|_| &body[..]);
            let (answer, _) = call(host, liar, [post.as_bytes()].into_iter().chain(pieces))?;
            ensure!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("big"), "{answer}");
            let post = "POST /count HTTP/1.1\r\nHost: liar\r\nConnection: close\r\n\
                        Transfer-Encoding: chunked\r\n\r\n";
            let body = format!("{post}{}0\r\n\r\n", "1\r\nx\r\n".repeat(CHUNKS));
            let (answer, ended) = call(host, liar, [body.as_bytes()].into_iter())?;
            ensure!(ended && answer.ends_with(&CHUNKS.to_string()), "{answer}");
            for bad in ["1\r\nxx", "g\r\n", &format!("1;{}", "x".repeat(1000))] {
                let body = format!("{post}{bad}");
                let (answer, _) = call(host, liar, [body.as_bytes()].into_iter())?;
                ensure!(answer.starts_with("HTTP/1.1 400 "), "{bad}: {answer}");
            }
            let (answer, ended) = get(&["/crumbs"])?;
            let crumbs = answer.matches("1\r\nx\r\n").count();
            ensure!(ended && crumbs == CHUNKS, "{crumbs} chunks of {CHUNKS}");
            let (answer, _) = get(&["/fine"])?;
            ensure!(answer.ends_with("fine"), "{answer}");
            Ok(())
        })?;
        check_few(host, before)
    });
}

/// Does something while somebody asks an app again and again, who must be answered each time.
fn beside<T: Send>(host: &Host, calm: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                check_answer(&host.get(calm, 80, "/")?, "Hello")?;
            }
            check_answer(&host.get(calm, 80, "/")?, "Hello")
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        let asked = asking.join().ok().context("a panic")?;
        asked.context("another app is not answered")?;
        done
    })
}

/// Sends all of this, as far as it is taken, and ends its side if all was; what came, and whether it ended well.
fn call<'a>(
    host: &Host,
    target: SocketAddr,
    pieces: impl Iterator<Item = &'a [u8]> + Send,
) -> Result<(String, bool)> {
    host.inside(|| {
        let mut stream = TcpStream::connect_timeout(&target, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        let mut up = stream.try_clone()?;
        thread::scope(|scope| {
            scope.spawn(move || {
                for piece in pieces {
                    if up.write_all(piece).is_err() {
                        return;
                    }
                }
            });
            let mut all = Vec::new();
            let ended = stream.read_to_end(&mut all);
            // Who does not listen any more is told no more either.
            drop(stream.shutdown(Shutdown::Both));
            let all = String::from_utf8_lossy(&all).into_owned();
            match ended {
                Ok(_) => Ok((all, true)),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok((all, false)),
                Err(error) => bail!("{error} behind {} bytes", all.len()),
            }
        })
    })
}

/// Bytes of the proxy's memory: `VmRSS` now, `VmHWM` at most.
fn memory(host: &Host, field: &str) -> Result<usize> {
    let proxy = host.perch_processes("proxy").pop().context("no proxy runs")?;
    let status = fs::read_to_string(format!("/proc/{}/status", proxy.pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    let kilobytes: usize = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kilobytes * 1024)
}

fn check_few(host: &Host, before: usize) -> Result<()> {
    let cost = memory(host, "VmHWM")?.saturating_sub(before);
    println!("{cost} bytes more");
    ensure!(cost <= FEW_BYTES_MAX, "{cost} bytes for a few connections");
    Ok(())
}
