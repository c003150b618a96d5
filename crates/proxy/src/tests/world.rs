//! What the tests stand on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::control::{
    AddressKind, AddressView, AppView, Autostop, FromProxy, Link, Listeners, MachineView,
    NetworkView, PortView, ServiceView, Settings, StartOutcome, ToProxy, Unit,
};
use crate::server::{self, Running};
use crate::{Endpoints, Options};

pub(super) const APP: &str = "app";
pub(super) const MACHINE: &str = "00000000000001";
pub(super) const NETWORK: u32 = 7;
/// The network of `::1`, from which these tests ask DNS.
pub(super) const LOOPBACK_NETWORK: u32 = 9;
pub(super) const FLYCAST: &str = "fdaa:0:7:0:1::2";
pub(super) const CALLER: &str = "fdaa:0:7:a7b:1:2:3:2";

/// Nothing in these tests takes longer unless it hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A proxy, and the test as its server.
pub(super) struct World {
    pub(super) http: SocketAddr,
    pub(super) raw: SocketAddr,
    pub(super) dns_udp: SocketAddr,
    pub(super) dns_tcp: SocketAddr,
    pub(super) udp: SocketAddr,
    pub(super) control: PathBuf,
    pub(super) link: Link,
    pub(super) running: Running,
    /// What [`World::ask`] speaks.
    speaks_http2: bool,
    _dir: TempDir,
}

/// Runs a test with a proxy; a hang is a failure.
pub(super) fn run<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let local = LocalSet::new();
    let work = async { tokio::time::timeout(PATIENCE, test(World::new().await)).await };
    local.block_on(&runtime, work).expect("the test does not hang");
}

/// The same twice: what [`World::ask`] speaks is HTTP/1.1, and then HTTP/2.
pub(super) fn run_each<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    for speaks_http2 in [false, true] {
        run(|world| test(World { speaks_http2, ..world }));
    }
}

fn fd(socket: impl Into<OwnedFd>) -> OwnedFd {
    socket.into()
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with_places(10_000).await
    }

    /// One that serves so many callers at once.
    pub(super) async fn with_places(count: u32) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let control = dir.path().join("proxy.sock");
        let (listeners, [http, raw, dns_udp, dns_tcp, udp]) = listeners();
        let listener = UnixListener::bind(&control).expect("the path is free");
        let running = server::start_with(listeners, listener, &options(http), count)
            .expect("the sockets are good");
        let (mut link, _listeners) = Link::connect(&control).await.expect("the proxy listens");
        link.send(&ToProxy::Settings(settings())).await.expect("the proxy reads");
        let speaks_http2 = false;
        Self { http, raw, dns_udp, dns_tcp, udp, control, link, running, speaks_http2, _dir: dir }
    }

    pub(super) async fn send(&mut self, message: ToProxy) {
        self.link.send(&message).await.expect("the proxy reads");
    }

    /// Sends the app and the end of the snapshot.
    pub(super) async fn publish(&mut self, app: AppView) {
        self.send(ToProxy::App(app)).await;
        self.send(ToProxy::SnapshotEnd).await;
    }

    /// The next message that is not a log line.
    pub(super) async fn heard(&mut self) -> FromProxy {
        heard(&mut self.link).await
    }

    /// Waits for a start and reports it done, with the app's new view.
    pub(super) async fn start(&mut self, app: AppView, index: usize) {
        start(&mut self.link, app, index).await;
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.http).await.expect("the proxy listens")
    }

    /// One request on its own connection; the whole answer.
    pub(super) async fn ask(&self, request: &str) -> String {
        self.begin(request).await.answer().await
    }

    /// The same, whose answer is waited for later.
    pub(super) async fn begin(&self, request: &str) -> Asked {
        let mut stream = self.connect().await;
        if self.speaks_http2 {
            return Asked::Http2(spawn_local(super::http2::ask_as_lines(
                stream,
                request.to_owned(),
            )));
        }
        stream.write_all(request.as_bytes()).await.expect("the proxy reads");
        Asked::Http1(stream)
    }
}

/// A request that was sent; who drops it leaves.
pub(super) enum Asked {
    Http1(TcpStream),
    Http2(JoinHandle<String>),
}

impl Asked {
    pub(super) async fn answer(mut self) -> String {
        match &mut self {
            Self::Http1(stream) => read_all(stream).await,
            Self::Http2(task) => task.await.expect("an answer comes"),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Self::Http2(task) = self {
            task.abort();
        }
    }
}

async fn heard(link: &mut Link) -> FromProxy {
    loop {
        match link.recv().await.expect("the proxy lives") {
            FromProxy::Log { .. } => {}
            other => return other,
        }
    }
}

pub(super) async fn start(link: &mut Link, mut app: AppView, index: usize) {
    let FromProxy::Start { machine, attempt, .. } = heard(link).await else {
        panic!("a start was expected");
    };
    assert_eq!(machine, app.machines[index].id);
    app.machines[index].run += 1;
    app.machines[index].state = "started".to_owned();
    app.revision += 1;
    let run = app.machines[index].run;
    let outcome = StartOutcome::Started { run };
    let done = ToProxy::StartDone { machine, attempt, outcome };
    link.send(&done).await.expect("the proxy reads");
    link.send(&ToProxy::App(app)).await.expect("the proxy reads");
}

/// Sockets for a proxy, and where HTTP, raw TCP, DNS over UDP and over TCP, and UDP services are.
pub(super) fn listeners() -> (Listeners, [SocketAddr; 5]) {
    let tcp = |at| std::net::TcpListener::bind(at).expect("a port");
    let udp = |at| std::net::UdpSocket::bind(at).expect("a port");
    let (tcp6, tcp4) = (tcp("127.0.0.1:0"), tcp("127.0.0.1:0"));
    let (dns_tcp, dns_udp) = (tcp("[::1]:0"), udp("[::1]:0"));
    let udp6 = udp("[::1]:0");
    nix::sys::socket::setsockopt(&udp6, nix::sys::socket::sockopt::Ipv6OrigDstAddr, &true)
        .expect("the kernel says where datagrams were sent to");
    let udp6_at = udp6.local_addr().expect("it is bound");
    let at = |listener: &std::net::TcpListener| listener.local_addr().expect("it is bound");
    let dns_udp_at = dns_udp.local_addr().expect("it is bound");
    let addresses = [at(&tcp6), at(&tcp4), dns_udp_at, at(&dns_tcp), udp6_at];
    let listeners = Listeners {
        tcp6: fd(tcp6),
        tcp4: fd(tcp4),
        udp6: fd(udp6),
        dns_udp: fd(dns_udp),
        dns_tcp: fd(dns_tcp),
        forward_v4: fd(udp("127.0.0.1:0")),
        forward_v6: fd(udp("[::1]:0")),
        forward_tcp_v4: unconnected(AddressFamily::INET),
        forward_tcp_v6: unconnected(AddressFamily::INET6),
    };
    (listeners, addresses)
}

pub(super) fn unconnected(family: AddressFamily) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, SocketType::STREAM, flags, None).expect("a socket")
}

/// Loopback in place of transparent sockets: what comes in at `http` is for port 80.
pub(super) fn options(http: SocketAddr) -> Options {
    let rewrite = move |kernel: Endpoints| Endpoints {
        caller: SocketAddr::new(ip(CALLER), kernel.caller.port()),
        dest: SocketAddr::new(ip(FLYCAST), if kernel.dest == http { 80 } else { 5432 }),
    };
    Options { version: "test".to_owned(), rewrite_endpoints: Some(Arc::new(rewrite)) }
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) const GET: &str =
    "GET /path?q HTTP/1.1\r\nHost: app.flycast\r\nConnection: close\r\n\r\n";

fn settings() -> Settings {
    let network = |id, prefix: &str| NetworkView {
        id,
        prefix: prefix.parse().expect("an address"),
        org: "personal".to_owned(),
        name: format!("net-{id}"),
    };
    Settings {
        region: "lcl".to_owned(),
        resolvers: Vec::new(),
        networks: vec![network(NETWORK, "fdaa:0:7::"), network(LOOPBACK_NETWORK, "::")],
        host_peers: vec![ip(CALLER)],
        public_domain: "perch.test".to_owned(),
        starts_max: 8,
        notes: false,
        source_key: None,
        caller_connections_max: 0,
    }
}

pub(super) fn settings_with(change: impl FnOnce(&mut Settings)) -> ToProxy {
    let mut settings = settings();
    change(&mut settings);
    ToProxy::Settings(settings)
}

fn service(internal_port: u16, port: u16, handlers: &[&str]) -> ServiceView {
    let handlers = handlers.iter().map(ToString::to_string).collect();
    ServiceView {
        protocol: "tcp".to_owned(),
        internal_port,
        ports: vec![PortView {
            start: port,
            end: port,
            handlers,
            force_https: false,
            h2_backend: false,
            proxy_proto_v2: false,
            http: None,
        }],
        autostop: Autostop::Stop,
        autostart: true,
        min_machines_running: 0,
        soft_limit: 20_000,
        hard_limit: None,
        unit: Unit::Requests,
        auto_stop_after_ms: 60_000,
        start_timeout_ms: 10_000,
        checks: Vec::new(),
        allow: Vec::new(),
        first_byte: false,
    }
}

/// One Machine behind port 80 (HTTP) and 5432 (raw) at this port of loopback.
pub(super) fn app(state: &str, internal_port: u16) -> AppView {
    let machine = MachineView {
        id: MACHINE.to_owned(),
        run: u64::from(state == "started"),
        state: state.to_owned(),
        region: "lcl".to_owned(),
        group: "app".to_owned(),
        link_ip: Ipv4Addr::LOCALHOST,
        private_ip: "fdaa:0:7:a7b:9:9:9:2".parse().expect("an address"),
        config_version: 1,
        cordoned: false,
        leased: false,
        primary: true,
        skip_dns: false,
        metadata: std::collections::BTreeMap::new(),
        services: vec![service(internal_port, 80, &["http"]), service(internal_port, 5432, &[])],
        checks: Vec::new(),
    };
    AppView {
        name: APP.to_owned(),
        network: NETWORK,
        revision: 1,
        addresses: vec![AddressView {
            ip: ip(FLYCAST),
            kind: AddressKind::Private,
            network: NETWORK,
        }],
        machines: vec![machine],
    }
}

/// A Machine's program: answers each connection by `serve`.
pub(super) async fn machine<F: Future<Output = ()> + 'static>(
    serve: impl Fn(TcpStream) -> F + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    spawn_local(accept(listener, serve));
    port
}

pub(super) async fn accept<F: Future<Output = ()> + 'static>(
    listener: TcpListener,
    serve: impl Fn(TcpStream) -> F + 'static,
) {
    while let Ok((stream, _)) = listener.accept().await {
        spawn_local(serve(stream));
    }
}

/// Answers every request of a connection with its own head as the body.
pub(super) async fn echo_heads(mut stream: TcpStream) {
    while let Some(head) = read_head(&mut stream).await {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Reads up to the end of a head, and nothing more.
pub(super) async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).expect("heads of these tests are text"))
}

/// Reads a response with a Content-Length.
pub(super) async fn read_response(stream: &mut TcpStream) -> (String, String) {
    let head = read_head(stream).await.expect("a head comes");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length = length.map_or(0, |text| text.parse().expect("a number"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("a body comes");
    (head, String::from_utf8(body).expect("bodies of these tests are text"))
}

pub(super) async fn read_all(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.expect("the connection ends well");
    String::from_utf8(all).expect("answers of these tests are text")
}

/// Writes until nobody takes anything any more.
pub(super) async fn fill(stream: &mut TcpStream) {
    let piece = vec![b'x'; 256 * 1024];
    let quiet = Duration::from_millis(200);
    while let Ok(written) = tokio::time::timeout(quiet, stream.write(&piece)).await {
        written.expect("the other side is there");
    }
}
