//! An example app: a small HTTP server to try Perch with.
//!
//! - `GET /` greets from its Machine, with a counter.
//! - `GET /fetch?url=http://other.flycast/` calls another app and reports status, body and milliseconds.
//! - `GET /sleep?ms=500` answers after a while, `GET /env` lists its `FLY_*` variables.
//! - `GET /ws` is a WebSocket: each message comes back with its number, counted together with the greetings.
//! - `/headers` tells the request's headers and how long its body is, whatever the method.
//! - `/respond?header=fly-replay:+app=other&body=…` answers with these headers and this body; a request that was replayed
//!   already is answered as by `/headers`.
//!
//! With `$HOLD_MB` it holds so much memory from its start on; `GET /held` reads all of it.
//!
//! With `$UDP_PORT` it also answers each datagram to that port with its number, its sender and itself.
//!
//! It listens on `0.0.0.0:$PORT` (default 8080), or with `$LISTEN_STDIN` on the socket that is its standard input, as
//! inetd hands it over. SIGINT and SIGTERM end it at once, as the kernel does by itself.

mod http;
mod websocket;

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use http::{Request, Response};

/// Connections served at once; each costs a thread.
const CONNECTIONS_MAX: usize = 1024;
/// A connection that says nothing for so long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// The largest datagram.
const DATAGRAM_BYTES_MAX: usize = 64 * 1024;
const THREAD_STACK_BYTES: usize = 64 * 1024;
const SLEEP_MS_MAX: u64 = 60_000;
const HOLD_MB_MAX: usize = 65_536;
/// Words of a megabyte.
const MEGABYTE: usize = (1 << 20) / size_of::<u64>();

/// What all connections share.
#[derive(Debug, Default)]
struct App {
    requests: AtomicU64,
    connections: AtomicUsize,
    held: Vec<u64>,
}

fn main() -> ExitCode {
    let port = std::env::var("PORT").unwrap_or_else(|_| "8080".to_owned());
    match serve(&format!("0.0.0.0:{port}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("could not listen on port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: &str) -> io::Result<()> {
    let listener = match std::env::var_os("LISTEN_STDIN") {
        Some(_) => io::stdin().as_fd().try_clone_to_owned()?.into(),
        None => TcpListener::bind(address)?,
    };
    let local = listener.local_addr()?;
    if let Ok(port) = std::env::var("UDP_PORT") {
        let socket = UdpSocket::bind(format!("0.0.0.0:{port}"))?;
        thread::Builder::new().stack_size(2 * DATAGRAM_BYTES_MAX).spawn(move || echo(&socket))?;
    }
    // Whoever hands over a socket may have made standard output the same.
    drop(writeln!(io::stdout(), "hello from {}, listening on {local}", machine()));
    let app = Arc::new(App { held: hold(), ..App::default() });
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => accept(&app, stream),
            Err(error) => eprintln!("could not accept a connection: {error}"),
        }
    }
    Ok(())
}

/// What nothing can compress.
fn hold() -> Vec<u64> {
    let asked = std::env::var("HOLD_MB").ok().and_then(|text| text.parse::<usize>().ok());
    let words = asked.unwrap_or(0).min(HOLD_MB_MAX) * MEGABYTE;
    let next = |word: &u64| {
        let word = word ^ (word << 13);
        let word = word ^ (word >> 7);
        Some(word ^ (word << 17))
    };
    std::iter::successors(Some(1), next).take(words).collect()
}

fn held(words: &[u64]) -> String {
    let sum = words.iter().fold(0_u64, |sum, word| sum.wrapping_add(*word));
    format!("{} MB, sum {sum:x}\n", words.len() / MEGABYTE)
}

/// Answers datagrams until the socket fails.
fn echo(socket: &UdpSocket) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    for number in 1_u64.. {
        let answered = socket.recv_from(&mut buffer).and_then(|(length, sender)| {
            let mut answer = format!("{number} {sender} ").into_bytes();
            answer.extend_from_slice(&buffer[..length]);
            socket.send_to(&answer, sender)
        });
        if let Err(error) = answered {
            eprintln!("could not answer a datagram: {error}");
        }
    }
}

fn machine() -> String {
    std::env::var("FLY_MACHINE_ID").unwrap_or_else(|_| "no machine".to_owned())
}

fn accept(app: &Arc<App>, stream: TcpStream) {
    if app.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
        app.connections.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let shared = Arc::clone(app);
    let run = move || {
        // A caller that goes away in the middle is its own business.
        drop(converse(&shared, stream));
        shared.connections.fetch_sub(1, Ordering::Relaxed);
    };
    if let Err(error) = thread::Builder::new().stack_size(THREAD_STACK_BYTES).spawn(run) {
        app.connections.fetch_sub(1, Ordering::Relaxed);
        eprintln!("could not start a thread: {error}");
    }
}

/// Answers the requests of one connection until it ends.
fn converse(app: &App, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let mut reader = io::BufReader::new(stream.try_clone()?);
    while let Some(request) = http::read_request(&mut reader)? {
        if let Some(key) = websocket_key(&request) {
            (&stream).write_all(websocket::head(key).as_bytes())?;
            let answer = |message: &[u8]| [format!("{} ", count(app)).as_bytes(), message].concat();
            return websocket::converse(&mut reader, &stream, answer);
        }
        let response = answer(app, &request);
        http::write_response(&stream, &request, &response)?;
        if request.close {
            break;
        }
    }
    Ok(())
}

fn answer(app: &App, request: &Request) -> Response {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    match path {
        "/" => Response::text(200, format!("Hello from {}! Request {}.\n", machine(), count(app))),
        "/fetch" => match http::parameter(query, "url") {
            Some(url) => fetch(&url),
            None => Response::text(400, "give ?url=http://host/path\n".to_owned()),
        },
        "/ws" => Response::text(400, "this is a WebSocket\n".to_owned()),
        "/sleep" => sleep(query),
        "/held" => Response::text(200, held(&app.held)),
        "/env" => Response::text(200, environment()),
        "/headers" => headers(request),
        "/respond" => respond(request, query),
        _ => Response::text(404, "not found\n".to_owned()),
    }
}

/// The number of the request that is just answered.
fn count(app: &App) -> u64 {
    app.requests.fetch_add(1, Ordering::Relaxed) + 1
}

/// The key of a request that wants to become a WebSocket where there is one.
fn websocket_key(request: &Request) -> Option<&str> {
    let path = request.target.split('?').next()?;
    let wanted = request.header("upgrade")?.eq_ignore_ascii_case("websocket");
    (path == "/ws" && wanted).then(|| request.header("sec-websocket-key"))?
}

fn sleep(query: &str) -> Response {
    let asked = http::parameter(query, "ms").and_then(|ms| ms.parse().ok());
    let Some(ms) = asked.filter(|ms| *ms <= SLEEP_MS_MAX) else {
        return Response::text(400, format!("give ?ms=0..{SLEEP_MS_MAX}\n"));
    };
    thread::sleep(Duration::from_millis(ms));
    Response::text(200, format!("slept {ms} ms\n"))
}

fn headers(request: &Request) -> Response {
    let lines = request.headers.iter().map(|(name, value)| format!("{name}: {value}\n"));
    let text = lines.collect::<String>();
    let (Request { method, target, body_len, .. }, machine) = (request, machine());
    Response::text(200, format!("{machine} got {method} {target} with {body_len} bytes\n{text}"))
}

/// Answers with what the query says, but never lets a request go round in circles.
fn respond(request: &Request, query: &str) -> Response {
    if ["fly-replay-src", "fly-replay-failed"].iter().any(|name| request.header(name).is_some()) {
        return headers(request);
    }
    let body = http::parameter(query, "body").unwrap_or_default();
    let mut response = Response::text(200, body);
    for header in http::parameters(query, "header") {
        let ends_line = header.contains(['\r', '\n']);
        match header.split_once(':').filter(|_| !ends_line) {
            Some((name, value)) => {
                response.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            None => return Response::text(400, "give ?header=name:value\n".to_owned()),
        }
    }
    response
}

fn environment() -> String {
    let mut lines: Vec<_> = std::env::vars()
        .filter(|(name, _)| name.starts_with("FLY_") || name == "PRIMARY_REGION")
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    lines.sort();
    lines.concat()
}

/// Calls a URL; the answer carries what came back, or why nothing did (502).
fn fetch(url: &str) -> Response {
    let begun = Instant::now();
    match http::get(url) {
        Ok((status, body)) => {
            let ms = begun.elapsed().as_secs_f64() * 1000.0;
            let mut text = format!("status: {status}\nms: {ms:.1}\n\n").into_bytes();
            text.extend_from_slice(&body);
            Response { status: 200, headers: Vec::new(), body: text }
        }
        Err(error) => {
            let ms = begun.elapsed().as_secs_f64() * 1000.0;
            Response::text(502, format!("error: {error}\nms: {ms:.1}\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn get(app: &App, target: &str) -> (u16, String) {
        let headers = vec![("x".to_owned(), "y".to_owned())];
        let (method, target) = ("GET".to_owned(), target.to_owned());
        let request = Request { method, target, close: false, headers, body_len: 3 };
        let response = answer(app, &request);
        (response.status, String::from_utf8_lossy(&response.body).into_owned())
    }

    #[test]
    fn the_greeting_counts() {
        let app = App::default();
        assert_eq!(get(&app, "/").0, 200);
        assert!(get(&app, "/?x").1.ends_with("Request 2.\n"));
    }

    #[test]
    fn requests_are_told_and_answers_are_made_as_asked() {
        let app = App::default();
        let (_, told) = get(&app, "/headers?a");
        assert!(told.ends_with(" got GET /headers?a with 3 bytes\nx: y\n"), "{told}");
        let respond = |headers: &[(&str, &str)]| {
            let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            let target = "/respond?header=Fly-Replay:+app%3Dx&body=hi".to_owned();
            let method = "GET".to_owned();
            answer(&app, &Request { method, target, close: false, headers, body_len: 0 })
        };
        let first = respond(&[]);
        assert_eq!(first.headers, [("fly-replay".to_owned(), "app=x".to_owned())]);
        assert_eq!(first.body, b"hi");
        assert!(respond(&[("fly-replay-src", "z")]).headers.is_empty());
    }

    #[test]
    fn a_datagram_comes_back_with_its_number_and_sender() -> io::Result<()> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let (at, caller) = (socket.local_addr()?, UdpSocket::bind("127.0.0.1:0")?);
        // Ends with the process.
        thread::spawn(move || echo(&socket));
        caller.connect(at)?;
        let mut buffer = [0; 64];
        for number in 1..=2 {
            caller.send(b"hello")?;
            let length = caller.recv(&mut buffer)?;
            let wanted = format!("{number} {} hello", caller.local_addr()?);
            assert_eq!(String::from_utf8_lossy(&buffer[..length]), wanted);
        }
        Ok(())
    }

    #[test]
    fn messages_and_requests_are_counted_together() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut caller = TcpStream::connect(listener.local_addr()?)?;
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            converse(&App::default(), stream)
        });
        caller.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        caller
            .write_all(b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n")?;
        caller.write_all(b"\x81\x82\0\0\0\0hi\x88\x80\0\0\0\0")?;
        let mut said = Vec::new();
        caller.read_to_end(&mut said)?;
        let text = String::from_utf8_lossy(&said);
        assert!(text.contains("Request 1.") && text.contains(" 101 "), "{text}");
        assert!(said.ends_with(b"\x81\x042 hi\x88\0"), "{text}");
        server.join().map_err(|_| io::Error::other("server panicked"))?
    }

    #[test]
    fn bad_requests_say_what_is_missing() {
        let app = App::default();
        assert_eq!(get(&app, "/fetch").0, 400);
        assert_eq!(get(&app, "/sleep?ms=x").0, 400);
        assert_eq!(get(&app, "/respond?header=x").0, 400);
        assert_eq!(get(&app, "/respond?header=x:%0d%0ay:z").0, 400);
        assert_eq!(get(&app, "/ws").0, 400);
        assert_eq!(get(&app, "/nothing").0, 404);
        assert_eq!(get(&app, "/fetch?url=ftp://x").0, 502);
    }

    #[test]
    fn a_fetch_reports_status_and_body_of_another_server() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/", listener.local_addr()?);
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            converse(&App::default(), stream)
        });
        let (status, text) = get(&App::default(), &format!("/fetch?url={url}"));
        assert_eq!(status, 200);
        assert!(text.starts_with("status: 200\n") && text.contains("Hello from"), "{text}");
        server.join().map_err(|_| io::Error::other("server panicked"))?
    }
}
