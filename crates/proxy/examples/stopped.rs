//! For measuring what the proxy takes for apps that sleep.
//!
//! `stopped N` tells a proxy about N apps of 2 stopped Machines and one Flycast address each, and prints its
//! memory (Pss): after all at once, after the same from a second server, and after a proxy that heard of them
//! one by one, as they are made.

use std::error::Error;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use perch_proxy::control::{
    AddressKind, AddressView, AppView, Autostop, Link, MachineView, NetworkView, PortView,
    ServiceView, Settings, ToProxy, Unit,
};
use perch_proxy::{Listeners, Options};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Machines of each app.
const MACHINES: u32 = 2;
/// How a child knows that it is the proxy.
const SOCKET: &str = "PERCH_STOPPED_SOCKET";

fn main() -> Outcome {
    if let Some(path) = std::env::var_os(SOCKET) {
        return proxy(Path::new(&path));
    }
    let usage = "usage: stopped NUMBER_OF_APPS";
    let apps: u32 = std::env::args().nth(1).ok_or(usage)?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(apps))
}

async fn measure(apps: u32) -> Outcome {
    let dir = std::env::temp_dir().join(format!("perch-stopped-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let mut at_once = Proxy::start(&dir.join("at-once.sock"))?;
    at_once.print("empty")?;
    for name in ["all at once", "again, by another server"] {
        let mut link = at_once.greet().await?;
        for number in 0..apps {
            link.send(&ToProxy::App(app(number, MACHINES))).await?;
        }
        at_once.finish(&mut link).await?;
        at_once.print(name)?;
    }
    drop(at_once);
    let mut by_one = Proxy::start(&dir.join("by-one.sock"))?;
    let mut link = by_one.greet().await?;
    link.send(&ToProxy::SnapshotEnd).await?;
    for number in 0..apps {
        for machines in 0..=MACHINES {
            link.send(&ToProxy::App(app(number, machines))).await?;
        }
    }
    by_one.finish(&mut link).await?;
    by_one.print("one by one")?;
    drop(by_one);
    Ok(std::fs::remove_dir_all(dir)?)
}

/// A proxy process; killed when dropped.
struct Proxy {
    child: Child,
    socket: std::path::PathBuf,
    token: u64,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to end.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Proxy {
    fn start(socket: &Path) -> Outcome<Self> {
        let child = Command::new(std::env::current_exe()?).env(SOCKET, socket).spawn()?;
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { child, socket: socket.to_owned(), token: 0 })
    }

    async fn greet(&self) -> Outcome<Link> {
        let (mut link, _listeners) = Link::connect(&self.socket).await?;
        link.send(&ToProxy::Settings(settings())).await?;
        Ok(link)
    }

    /// Returns when everything that was said before has been heard.
    async fn finish(&mut self, link: &mut Link) -> Outcome {
        link.send(&ToProxy::SnapshotEnd).await?;
        self.token += 1;
        let (machine, token) = ("00000000000001".to_owned(), self.token);
        let drain = ToProxy::Drain { machine, run: 1, token, timeout_ms: 0 };
        link.send(&drain).await?;
        link.recv().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(())
    }

    fn print(&self, what: &str) -> Outcome {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
        let kb: f64 = line.split_whitespace().next().ok_or("no number")?.parse()?;
        writeln!(std::io::stdout(), "{what:<26} {:7.1} MiB", kb / 1024.0)?;
        Ok(())
    }
}

fn proxy(path: &Path) -> Outcome {
    let control = UnixListener::bind(path)?;
    let udp = |at: IpAddr| UdpSocket::bind((at, 0));
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    let tcp = || TcpListener::bind((v4, 0));
    // Nobody calls here.
    let listeners = Listeners {
        tcp6: tcp()?.into(),
        tcp4: tcp()?.into(),
        udp6: udp(v6)?.into(),
        dns_udp: udp(v4)?.into(),
        dns_tcp: tcp()?.into(),
        forward_v4: udp(v4)?.into(),
        forward_v6: udp(v6)?.into(),
        forward_tcp_v4: udp(v4)?.into(),
        forward_tcp_v6: udp(v6)?.into(),
    };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Ok(perch_proxy::run(listeners, control, Options { version, rewrite_endpoints: None })?)
}

fn settings() -> Settings {
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
        source_key: None,
        caller_connections_max: 0,
    }
}

fn app(number: u32, machines: u32) -> AppView {
    let ip = Ipv6Addr::new(0xfdaa, 0, 7, 0, 1, 0, (number >> 16) as u16, number as u16);
    AppView {
        name: format!("app-{number}"),
        network: 7,
        revision: 1 + u64::from(machines),
        addresses: vec![AddressView { ip: ip.into(), kind: AddressKind::Private, network: 7 }],
        machines: (0..machines).map(|index| machine(number * MACHINES + index)).collect(),
    }
}

fn machine(number: u32) -> MachineView {
    let [_, high, mid, low] = number.to_be_bytes();
    let metadata = [
        ("fly_platform_version", "v2"),
        ("fly_process_group", "app"),
        ("fly_release_version", "1"),
    ];
    let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    MachineView {
        id: format!("{:014x}", u64::from(number) + 1),
        run: 0,
        state: "stopped".to_owned(),
        region: "lcl".to_owned(),
        group: "app".to_owned(),
        link_ip: Ipv4Addr::new(10, high, mid, low),
        private_ip: Ipv6Addr::new(
            0xfdaa,
            0,
            7,
            0xa7b,
            1,
            high.into(),
            (number >> 16) as u16,
            number as u16,
        ),
        config_version: 1,
        cordoned: false,
        leased: false,
        primary: true,
        skip_dns: false,
        metadata: metadata.into_iter().map(own).collect(),
        services: vec![service()],
        checks: Vec::new(),
    }
}

fn service() -> ServiceView {
    let handlers = vec!["http".to_owned()];
    ServiceView {
        protocol: "tcp".to_owned(),
        internal_port: 8081,
        ports: vec![PortView {
            start: 80,
            end: 80,
            handlers,
            force_https: false,
            h2_backend: false,
            proxy_proto_v2: false,
            http: None,
        }],
        autostop: Autostop::Stop,
        autostart: true,
        min_machines_running: 0,
        soft_limit: 20,
        hard_limit: None,
        unit: Unit::Connections,
        auto_stop_after_ms: 3_600_000,
        start_timeout_ms: 60_000,
        checks: Vec::new(),
        allow: Vec::new(),
        first_byte: false,
    }
}
