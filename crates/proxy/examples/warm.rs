//! For measuring the warm path beside another proxy.
//!
//! `warm upstream PORT` answers every request on 127.0.0.1:PORT with 64 bytes (`warm upstream PORT N`:
//! N bytes). `warm proxy PORT UPSTREAM` serves 127.0.0.1:PORT with a proxy whose only Machine is that
//! upstream. `warm held PORT` serves one whose only Machine sleeps and never wakes, so that callers are
//! held for a minute. `warm callers PORT UPSTREAM signed` is `warm proxy` for 1,000 calling Machines, by the ports that
//! callers come from, whose requests are signed (`Fly-Src`), or `plain`. Each runs on one thread; pin them with `taskset`, and read their CPU time from /proc.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use perch_proxy::control::{
    AddressKind, AddressView, AppView, Autostop, Link, MachineView, NetworkView, PortView,
    ServiceView, Settings, SigningSeed, ToProxy, Unit,
};
use perch_proxy::{Endpoints, Listeners, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Machines that call.
const CALLERS: u16 = 1000;

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<usize> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    match (args.first().map(String::as_str), numbers.as_slice()) {
        (Some("upstream"), [port]) => upstream(u16::try_from(*port)?, 64),
        (Some("upstream"), [port, length]) => upstream(u16::try_from(*port)?, *length),
        (Some("proxy"), [port, machine]) => {
            proxy(u16::try_from(*port)?, app("started", u16::try_from(*machine)?))
        }
        (Some("callers"), [port, machine]) => {
            let key = (args.last().map(String::as_str) == Some("signed")).then(|| "5a".repeat(32));
            let mut called = app("started", u16::try_from(*machine)?);
            (called.addresses[0].kind, called.addresses[0].network) = (AddressKind::Private, 7);
            let caller = |kernel: Endpoints| {
                let ip = IpAddr::V6(caller(kernel.caller.port() % CALLERS));
                SocketAddr::new(ip, kernel.caller.port())
            };
            serve(u16::try_from(*port)?, vec![called, callers()], (settings(key), caller))
        }
        (Some("held"), [port]) => proxy(u16::try_from(*port)?, app("stopped", 1)),
        _ => {
            Err("usage: warm upstream PORT [BYTES] | warm proxy PORT UPSTREAM | warm held PORT | \
                 warm callers PORT UPSTREAM plain|signed"
                .into())
        }
    }
}

fn upstream(port: u16, length: usize) -> Outcome {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    let answer: Arc<[u8]> = [head.into_bytes(), vec![b'x'; length]].concat().into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

fn proxy(port: u16, app: AppView) -> Outcome {
    serve(port, vec![app], (settings(None), |kernel: Endpoints| kernel.caller))
}

fn serve(
    port: u16,
    apps: Vec<AppView>,
    (settings, caller): (Settings, impl Fn(Endpoints) -> SocketAddr + Send + Sync + 'static),
) -> Outcome {
    let http = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let dir = std::env::temp_dir().join(format!("perch-warm-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let path = dir.join("proxy.sock");
    let control = UnixListener::bind(&path)?;
    let udp = |at: IpAddr| UdpSocket::bind((at, 0));
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    let listeners = Listeners {
        tcp6: http.into(),
        tcp4: TcpListener::bind((v4, 0))?.into(),
        udp6: udp(v6)?.into(),
        dns_udp: udp(v4)?.into(),
        dns_tcp: TcpListener::bind((v4, 0))?.into(),
        forward_v4: udp(v4)?.into(),
        forward_v6: udp(v6)?.into(),
        // No DNS is asked here.
        forward_tcp_v4: udp(v4)?.into(),
        forward_tcp_v6: udp(v6)?.into(),
    };
    let dest = SocketAddr::new(IpAddr::V6("fdaa:0:7:0:1::2".parse()?), 80);
    let rewrite = move |kernel: Endpoints| Endpoints { dest, caller: caller(kernel) };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let options = Options { version, rewrite_endpoints: Some(Arc::new(rewrite)) };
    std::thread::spawn(move || {
        if let Err(error) = play_server(&path, settings, apps) {
            // Nothing can be measured then; the message says why.
            drop(writeln!(std::io::stderr(), "no server: {error}"));
        }
        drop(std::fs::remove_dir_all(dir));
    });
    Ok(perch_proxy::run(listeners, control, options)?)
}

/// Tells the proxy about apps, then stays silent until standard input ends.
fn play_server(path: &Path, settings: Settings, apps: Vec<AppView>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let link = runtime.block_on(async {
        let (mut link, _listeners) = Link::connect(path).await?;
        link.send(&ToProxy::Settings(settings)).await?;
        for app in apps {
            link.send(&ToProxy::App(app)).await?;
        }
        link.send(&ToProxy::SnapshotEnd).await?;
        Ok::<_, Box<dyn Error>>(link)
    })?;
    let read = std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(link);
    if read == 0 { Ok(()) } else { Err("standard input is only waited for".into()) }
}

fn caller(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfdaa, 0, 7, 0xa7b, 1, 0, number, 2)
}

/// An app whose Machines only call.
fn callers() -> AppView {
    let one = app("stopped", 1).machines.remove(0);
    let machine = |number| MachineView {
        id: format!("{:014x}", 256 + u32::from(number)),
        private_ip: caller(number),
        link_ip: Ipv4Addr::new(172, 16, (number >> 8) as u8, number as u8),
        services: Vec::new(),
        ..one.clone()
    };
    let machines = (0..CALLERS).map(machine).collect();
    AppView { name: "callers".to_owned(), addresses: Vec::new(), machines, ..app("stopped", 1) }
}

fn settings(key: Option<String>) -> Settings {
    let network = NetworkView {
        id: 7,
        prefix: Ipv6Addr::new(0xfdaa, 0, 7, 0, 0, 0, 0, 0),
        org: "personal".to_owned(),
        name: "default".to_owned(),
    };
    Settings {
        region: "lcl".to_owned(),
        resolvers: Vec::new(),
        networks: vec![network],
        host_peers: Vec::new(),
        public_domain: "perch.test".to_owned(),
        starts_max: 8,
        notes: false,
        source_key: key.map(SigningSeed),
        caller_connections_max: 0,
    }
}

fn app(state: &str, internal_port: u16) -> AppView {
    let ports = vec![PortView {
        start: 80,
        end: 80,
        handlers: vec!["http".to_owned()],
        force_https: false,
        h2_backend: false,
        proxy_proto_v2: false,
        http: None,
    }];
    let service = ServiceView {
        protocol: "tcp".to_owned(),
        internal_port,
        ports,
        autostop: Autostop::Stop,
        autostart: true,
        min_machines_running: 0,
        soft_limit: 200,
        hard_limit: Some(100_000),
        unit: Unit::Requests,
        auto_stop_after_ms: 300_000,
        start_timeout_ms: 60_000,
        checks: Vec::new(),
        allow: Vec::new(),
        first_byte: false,
    };
    let machine = MachineView {
        id: "00000000000001".to_owned(),
        run: 1,
        state: state.to_owned(),
        region: "lcl".to_owned(),
        group: "app".to_owned(),
        link_ip: Ipv4Addr::LOCALHOST,
        private_ip: Ipv6Addr::LOCALHOST,
        config_version: 1,
        cordoned: false,
        leased: false,
        primary: true,
        skip_dns: false,
        metadata: std::collections::BTreeMap::new(),
        services: vec![service],
        checks: Vec::new(),
    };
    let ip = IpAddr::V6(Ipv6Addr::new(0xfdaa, 0, 7, 0, 1, 0, 0, 2));
    AppView {
        name: "app".to_owned(),
        network: 7,
        revision: 1,
        addresses: vec![AddressView { ip, kind: AddressKind::Public, network: 0 }],
        machines: vec![machine],
    }
}
