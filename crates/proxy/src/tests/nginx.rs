//! nginx as a second opinion: behind the proxy as the program of a Machine, and in front of it as what a caller uses.
//!
//! Both ways an answer must be what it is without the proxy, or without nginx. What is forwarded of a message that
//! two readers could read in two ways, nginx must count as we do.

use std::fmt::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::world::*;
use crate::fuzz::{follow, shown};
use crate::http::body::Framing;

/// Where Debian's package puts it.
const NGINX: &str = "/usr/sbin/nginx";
/// Tries to start one.
const STARTS_MAX: u32 = 5;
/// As `cargo x test` sets it where nothing may be skipped.
const REQUIRED: &str = "E2E_REQUIRED";

/// One that runs until it is dropped.
struct Nginx {
    child: Child,
    dir: tempfile::TempDir,
    address: SocketAddr,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Nginx {
    /// `None`: it is not installed, and that is no failure. `server` is what its only server does.
    fn start(server: &str) -> Option<Self> {
        if !Path::new(NGINX).exists() {
            let required = std::env::var(REQUIRED).is_ok_and(|value| value == "1");
            assert!(!required, "{NGINX} is not there; install nginx-light");
            eprintln!("skipped: {NGINX} is not there");
            return None;
        }
        // Somebody else may take the port before it does.
        let started = (0..STARTS_MAX).find_map(|_| Self::try_start(server));
        Some(started.expect("it starts with this configuration"))
    }

    fn try_start(server: &str) -> Option<Self> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let (address, dir) = (free.expect("a port is free"), tempfile::tempdir());
        let dir = dir.expect("a directory");
        write_files(dir.path(), address, server).expect("the directory is ours");
        let child = Command::new(NGINX)
            .args(["-p".as_ref(), dir.path(), "-c".as_ref(), "nginx.conf".as_ref()])
            .args(["-e", "error"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut nginx = Self { child: child.expect("it is a program"), dir, address };
        while std::net::TcpStream::connect(address).is_err() {
            if nginx.child.try_wait().expect("it is ours").is_some() {
                return None;
            }
            std::thread::yield_now();
        }
        Some(nginx)
    }

    fn access_log(&self) -> PathBuf {
        self.dir.path().join("access")
    }

    /// The requests that it has answered, but for those that ask this.
    async fn requests(&self) -> Vec<String> {
        // It does one thing after the other: when this is answered, all before it have been written down.
        let asked = talk(self.address, b"GET /count HTTP/1.0\r\n\r\n", Half::Open).await;
        assert!(asked.starts_with(b"HTTP/1.1 200"), "{}", shown(&asked));
        let log = std::fs::read_to_string(self.access_log()).unwrap_or_default();
        log.lines().filter(|line| *line != "GET /count").map(str::to_owned).collect()
    }
}

fn write_files(dir: &Path, address: SocketAddr, server: &str) -> std::io::Result<()> {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = temporary.map(|kind| format!("{kind}_temp_path {kind};"));
    let server = server.replace("SELF", &address.to_string());
    let config = format!(
        "daemon off; master_process off; pid pid; events {{ worker_connections 256; }}\n\
         http {{ {}\n log_format one '$request_method $request_uri';\n access_log access one;\n\
         default_type text/plain; server {{ listen {address};\n{server}\n}} }}\n",
        temporary.join(" "),
    );
    std::fs::write(dir.join("nginx.conf"), config)?;
    std::fs::write(dir.join("file.txt"), "0123456789".repeat(20_000))?;
    std::fs::write(dir.join("page.shtml"), "<!--#echo var=\"uri\" -->!")
}

/// What a caller does when it has sent all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Open,
    Closed,
}

/// Sends this and reads until the other side closes.
async fn talk(address: SocketAddr, bytes: &[u8], half: Half) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let (mut reads, mut writes) = stream.split();
    let mut answer = Vec::new();
    let send = async {
        // Who answers early may not read all of it.
        if writes.write_all(bytes).await.is_ok() && half == Half::Closed {
            drop(writes.shutdown().await);
        }
    };
    let read = async {
        // A reset after the answer is an end, too.
        drop(reads.read_to_end(&mut answer).await);
    };
    tokio::join!(send, read);
    answer
}

/// Status and body of each answer; interim ones are left out.
fn answers(bytes: &[u8], heads: &[bool]) -> Vec<(u16, Vec<u8>, bool)> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let mut space = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut space);
        let Ok(httparse::Status::Complete(length)) = head.parse(&bytes[at..]) else {
            panic!("no answer: {}", shown(&bytes[at..]));
        };
        at += length;
        let value = |name: &str| {
            let mut named = head.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name));
            named.next().map(|h| String::from_utf8_lossy(h.value).into_owned())
        };
        let status = head.code.expect("it is parsed");
        if status < 200 && status != 101 {
            continue;
        }
        let is_head = heads.get(found.len()).copied().unwrap_or(false);
        let framing = match (value("content-length"), value("transfer-encoding")) {
            _ if is_head || [204, 304].contains(&status) => Framing::None,
            (Some(length), _) => Framing::Length(length.parse().expect("a number")),
            (None, Some(_)) => Framing::Chunked,
            (None, None) => Framing::Close,
        };
        let (body, length) = match framing {
            Framing::Close => (bytes[at..].to_vec(), bytes.len() - at),
            framing => follow(framing, [&bytes[at..]]).expect("good").expect("whole"),
        };
        at += length;
        found.push((status, body, value("x-nginx").is_some()));
    }
    found
}

/// Whether each request of these bytes is one of HEAD; they are told apart by their first lines.
fn heads(bytes: &[u8]) -> Vec<bool> {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.split("\r\n").filter(|line| line.contains(" HTTP/1."));
    lines.map(|line| line.starts_with("HEAD ")).collect()
}

const SERVER: &str = "
    root .; ssi_types text/plain; add_header X-Nginx 1 always; gzip_types text/plain; gzip_proxied any;
    client_max_body_size 1m; large_client_header_buffers 4 16k;
    location / { return 200 'hello'; }
    location /count { return 200 'counted'; }
    location = /file.txt { gzip on; gzip_min_length 1; }
    location = /page.shtml { ssi on; }
    location /none { return 204; }
    location /refused { return 403 'no'; }
    location /moved { return 301 /there; }
    location /echo { proxy_pass http://SELF/said; proxy_set_header X-Body $request_body; proxy_method GET;
                     proxy_pass_request_body off; proxy_set_header Content-Length '';
                     proxy_ignore_client_abort on; }
    location /said { return 200 $http_x_body; }";

/// Odd but legal: name, what the caller sends, and the statuses of the answers.
// long: a table.
fn legal() -> Vec<(&'static str, Vec<u8>, &'static [u16])> {
    let last = "Host: a\r\nConnection: close\r\n";
    let text = |text: String| text.into_bytes();
    let mut huge = String::new();
    for n in 0..2 {
        write!(huge, "X-Huge-{n}: {}\r\n", "x".repeat(7_000)).expect("memory");
    }
    vec![
        ("plain", text(format!("GET / HTTP/1.1\r\n{last}\r\n")), &[200]),
        (
            "HEAD",
            text(format!(
                "HEAD /file.txt HTTP/1.1\r\nHost: a\r\n\r\nHEAD / HTTP/1.1\r\n{last}\r\n"
            )),
            &[200, 200],
        ),
        (
            "no content",
            text(format!("GET /none HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n{last}\r\n")),
            &[204, 200],
        ),
        (
            "not modified",
            text(format!("GET /file.txt HTTP/1.1\r\nIf-None-Match: *\r\n{last}\r\n")),
            &[304],
        ),
        ("a large file", text(format!("GET /file.txt HTTP/1.1\r\n{last}\r\n")), &[200]),
        (
            "a range",
            text(format!("GET /file.txt HTTP/1.1\r\nRange: bytes=5-14\r\n{last}\r\n")),
            &[206],
        ),
        ("chunked answer", text(format!("GET /page.shtml HTTP/1.1\r\n{last}\r\n")), &[200]),
        (
            "compressed and chunked",
            text(format!("GET /file.txt HTTP/1.1\r\nAccept-Encoding: gzip\r\n{last}\r\n")),
            &[200],
        ),
        ("redirect", text(format!("GET /moved HTTP/1.1\r\n{last}\r\n")), &[301]),
        (
            "a body",
            text(format!("POST /echo HTTP/1.1\r\nContent-Length: 5\r\n{last}\r\nabcde")),
            &[200],
        ),
        (
            "a chunked body",
            text(format!(
                "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{last}\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
            )),
            &[200],
        ),
        (
            "extensions and trailers",
            text(format!(
                "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n{last}\r\n3;a=b\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
            )),
            &[200],
        ),
        (
            "a chunked body and a next request",
            text(format!(
                "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n{last}\r\n"
            )),
            &[200, 200],
        ),
        (
            "100-continue",
            text(format!(
                "POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n{last}\r\nhi"
            )),
            &[200],
        ),
        (
            "pipelining",
            text(format!(
                "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /refused HTTP/1.1\r\nHost: a\r\n\r\nGET /moved HTTP/1.1\r\n{last}\r\n"
            )),
            &[200, 403, 301],
        ),
        ("HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n".to_vec(), &[200]),
        ("HTTP/1.0 and a chunked answer", b"GET /page.shtml HTTP/1.0\r\n\r\n".to_vec(), &[200]),
        (
            "HTTP/1.0 kept",
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /refused HTTP/1.0\r\n\r\n"
                .to_vec(),
            &[200, 403],
        ),
        (
            "an early answer",
            text(format!(
                "POST /refused HTTP/1.1\r\nContent-Length: 200000\r\n{last}\r\n{}",
                "x".repeat(200_000)
            )),
            &[403],
        ),
        ("14 kB of fields", text(format!("GET / HTTP/1.1\r\n{huge}{last}\r\n")), &[200]),
        ("absolute target", text(format!("GET http://a/none HTTP/1.1\r\n{last}\r\n")), &[204]),
        ("empty line before", text(format!("\r\nGET / HTTP/1.1\r\n{last}\r\n")), &[200]),
    ]
}

#[test]
fn a_program_that_is_nginx_says_the_same_through_the_proxy() {
    let Some(nginx) = Nginx::start(SERVER) else { return };
    run(|mut world| async move {
        world.publish(app("started", nginx.address.port())).await;
        for (name, bytes, statuses) in legal() {
            for half in [Half::Open, Half::Closed] {
                let without = answers(&talk(nginx.address, &bytes, half).await, &heads(&bytes));
                let through = answers(&talk(world.http, &bytes, half).await, &heads(&bytes));
                assert_eq!(through.iter().map(|it| it.0).collect::<Vec<_>>(), statuses, "{name}");
                assert!(through == without, "{name}: {without:?} became {through:?}");
            }
        }
    });
}

/// What somebody might read as more requests, or fewer.
fn smuggling() -> Vec<Vec<u8>> {
    let next = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    let fields = [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\nContent-Length: 0\r\n\r\n",
        "Transfer-Encoding : chunked\r\nContent-Length: 0\r\n\r\n",
        "Transfer-Encoding:\x0bchunked\r\nContent-Length: 0\r\n\r\n",
        "X: y\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
        "X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
        "Transfer_Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 40\r\n\r\n",
        "Content-Length: 0, 40\r\n\r\n",
        "Content-Length: +0\r\n\r\n",
        "Content-Length: 0x0\r\n\r\n",
        "Content_Length: 40\r\nContent-Length: 0\r\n\r\n",
        "Connection: Content-Length\r\nContent-Length: 0\r\n\r\n",
        "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0;\n\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n00000000000000000000\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n\r\n",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 0\r\n\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
        "Expect: 100-continue\r\nContent-Length: 0\r\n\r\n",
    ];
    let mut all: Vec<Vec<u8>> =
        fields.iter().map(|field| format!("{post}{field}{next}").into_bytes()).collect();
    let whole = [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\rHost: a\r\r",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET /\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
        "GET /x\tHTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\n\r\n",
    ];
    all.extend(whole.iter().map(|message| format!("{message}{next}").into_bytes()));
    all
}

#[test]
fn nginx_counts_as_many_requests_as_were_answered() {
    let Some(nginx) = Nginx::start(SERVER) else { return };
    run(|mut world| async move {
        world.publish(app("started", nginx.address.port())).await;
        for message in smuggling() {
            let before = nginx.requests().await.len();
            let answer = talk(world.http, &message, Half::Closed).await;
            let answered = answers(&answer, &heads(&message));
            let from_nginx = answered.iter().filter(|(_, _, is_its)| *is_its).count();
            let counted = nginx.requests().await;
            let counted = &counted[before..];
            assert_eq!(counted.len(), from_nginx, "{}: {counted:?}", shown(&message));
        }
    });
}

/// What a caller asks, and what the Machine sends for it.
fn origins() -> Vec<(&'static str, &'static str, &'static str)> {
    let get = "GET / HTTP/1.1\r\n";
    vec![
        ("length", get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        (
            "chunked",
            get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x\r\nllo\r\n0\r\n\r\n",
        ),
        (
            "trailers",
            get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n1\r\nx\r\n0\r\nX: 1\r\n\r\n",
        ),
        ("until the end", get, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it"),
        ("HTTP/1.0", get, "HTTP/1.0 200 OK\r\n\r\nold"),
        ("no content", get, "HTTP/1.1 204 No Content\r\n\r\n"),
        ("not modified", get, "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"),
        ("HEAD", "HEAD / HTTP/1.1\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (
            "continue",
            get,
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        ("a reason of its own", get, "HTTP/1.1 299 Odd But Legal\r\nContent-Length: 0\r\n\r\n"),
        ("an error", get, "HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nfail"),
        (
            "a chunked body",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n",
            "HTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\nx",
        ),
        (
            "an early answer",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n",
            "HTTP/1.1 413 No\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
        ),
        (
            "100-continue",
            "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
        ),
    ]
}

/// The body that belongs to such a head.
fn body_of(head: &str) -> &'static str {
    match (head.contains("chunked"), head.contains("Content-Length")) {
        (true, _) => "5\r\nabcde\r\n0\r\n\r\n",
        (_, true) => "abcde",
        (false, false) => "",
    }
}

#[test]
fn who_comes_through_nginx_gets_what_others_get() {
    run(|mut world| async move {
        let front = format!(
            "location / {{ proxy_pass http://{}; proxy_http_version 1.1; proxy_request_buffering off;
             proxy_set_header Host a; proxy_set_header Connection $http_connection;
             proxy_set_header Upgrade $http_upgrade; }}",
            world.http
        );
        let Some(nginx) = Nginx::start(&front) else { return };
        let (say, said) = tokio::sync::watch::channel("");
        let port = machine(move |mut stream| {
            let said = said.clone();
            async move {
                if read_head(&mut stream).await.is_some() {
                    let answer = *said.borrow();
                    // One request for each connection; what is left of a body is not read before.
                    drop(stream.write_all(answer.as_bytes()).await);
                    drop(stream.shutdown().await);
                    read_all(&mut stream).await;
                }
            }
        })
        .await;
        world.publish(app("started", port)).await;
        for (name, head, answer) in origins() {
            say.send(answer).expect("the Machine lives");
            let message = format!("{head}Host: a\r\nConnection: close\r\n\r\n{}", body_of(head));
            let heads = heads(message.as_bytes());
            let [direct, through] = [world.http, nginx.address]
                .map(|address| talk(address, message.as_bytes(), Half::Open));
            let (direct, through) =
                (answers(&direct.await, &heads), answers(&through.await, &heads));
            assert_eq!(direct.len(), 1, "{name}");
            assert!(direct == through, "{name}: {direct:?} became {through:?}");
        }
        say.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello",
        )
        .expect("the Machine lives");
        let upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        for address in [world.http, nginx.address] {
            let answer = talk(address, upgrade, Half::Open).await;
            assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", shown(&answer));
            assert!(answer.ends_with(b"\r\n\r\nhello"), "{}", shown(&answer));
        }
    });
}
