//! A host made of a network namespace, with a plane in it, and the callers' side of the tests.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use std::{env, fs, process};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg,
};
use perch_net::{Attach, CallLimits, HostAccess, Plane, PlaneConfig, Prefix, Prefix48, run_in};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, send};

/// How long a refusal may take; a silent drop is told by this.
const DIAL_TIMEOUT: Duration = Duration::from_millis(400);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const ECHO_TIMEOUT: Duration = Duration::from_millis(400);

/// A host with one plane.
pub(crate) struct Lab {
    pub(crate) plane: Plane,
    pub(crate) config: PlaneConfig,
    /// What the host looked like before the plane.
    pub(crate) before: String,
    host: NamedNetns,
}

/// A Machine: just its namespace.
pub(crate) struct MachineLab {
    pub(crate) netns: OwnedFd,
    pub(crate) private_ip: Ipv6Addr,
    pub(crate) link: (Ipv4Addr, Ipv4Addr),
}

impl Lab {
    /// Makes a host and a plane; `None` where that is not possible and not required.
    pub(crate) fn start(test: &str) -> Option<Self> {
        if skip(test) {
            return None;
        }
        let host = NamedNetns::make(&format!("perch-net-{}-{test}", process::id()));
        ip(host.netns.as_fd(), "link set lo up");
        let config = config(test, 0);
        let before = snapshot(host.netns.as_fd());
        let plane = ensure(&host, &config);
        Some(Self { plane, config, before, host })
    }

    /// As if another process took over: nothing is known but what the kernel holds.
    pub(crate) fn restart(mut self) -> Self {
        self.plane = ensure(&self.host, &self.config);
        self
    }

    /// As if a server with another configuration took over.
    pub(crate) fn restart_with(mut self, host_access: HostAccess) -> Self {
        self.config.host_access = host_access;
        self.restart()
    }

    pub(crate) fn host(&self) -> BorrowedFd<'_> {
        self.host.netns.as_fd()
    }

    pub(crate) fn in_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        run_in(self.host(), work).expect("enter the host")
    }

    pub(crate) fn network(&self, text: &str) -> Prefix48 {
        let network = prefix(text);
        self.plane.ensure_network(network, None).expect("open the network");
        network
    }

    pub(crate) fn machine(&self, name: &str, private_ip: &str, link: u8) -> MachineLab {
        MachineLab::attach(&self.plane, name, private_ip, link)
    }

    /// A second plane on the same host.
    pub(crate) fn second_plane(&self) -> Plane {
        let test = self.config.pin.file_name().expect("a file").to_string_lossy().into_owned();
        ensure(&self.host, &config(&test, 1))
    }

    /// The world beyond the host: 198.51.100.1, reached from the host's 198.51.100.2.
    pub(crate) fn world(&self) -> NamedNetns {
        let world = NamedNetns::make(&format!("{}-w", self.host.name));
        let name = &world.name;
        ip(self.host(), &format!("link add wan0 type veth peer name wan1 netns {name}"));
        ip(self.host(), "addr add 198.51.100.2/24 dev wan0");
        ip(self.host(), "link set wan0 up");
        ip(world.as_fd(), "addr add 198.51.100.1/24 dev wan1");
        ip(world.as_fd(), "link set wan1 up");
        world
    }

    pub(crate) fn nft(&self, rules: &str) {
        let rules = rules.to_owned();
        let output = run_in(self.host(), || {
            let mut child = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .expect("nft is installed");
            let mut stdin = child.stdin.take().expect("piped");
            stdin.write_all(rules.as_bytes()).expect("nft reads");
            drop(stdin);
            child.wait().expect("nft ends")
        });
        assert!(output.expect("enter the host").success());
    }

    pub(crate) fn host_sees(&self, command: &str) -> String {
        output(self.host(), command)
    }

    pub(crate) fn snapshot(&self) -> String {
        snapshot(self.host())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for index in 0..2 {
            let test = self.config.pin.file_name().expect("a file").to_string_lossy().into_owned();
            let config = if index == 0 { self.config.clone() } else { config(&test, 1) };
            let removed = run_in(self.host(), || Plane::remove_by_config(&config));
            if !matches!(removed, Ok(Ok(()))) {
                eprintln!("could not clean up {}: {removed:?}", config.pin.display());
            }
        }
    }
}

impl MachineLab {
    pub(crate) fn attach(plane: &Plane, name: &str, private_ip: &str, link: u8) -> Self {
        let private_ip = v6(private_ip);
        let link = (Ipv4Addr::new(172, 16, 0, link), Ipv4Addr::new(172, 16, 0, link + 1));
        let attach = Attach { name: name.to_owned(), private_ip, link };
        let netns = plane.attach(&attach).expect("attach");
        Self { netns, private_ip, link }
    }
}

/// A namespace with a name, removed with its owner.
pub(crate) struct NamedNetns {
    name: String,
    netns: OwnedFd,
}

impl NamedNetns {
    fn make(name: &str) -> Self {
        let output = Command::new("ip").args(["netns", "add", name]).output();
        assert_success("ip netns add", &output.expect("iproute2 is installed"));
        let netns = fs::File::open(format!("/run/netns/{name}")).expect("it exists").into();
        Self { name: name.to_owned(), netns }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }
}

impl Drop for NamedNetns {
    fn drop(&mut self) {
        let status = Command::new("ip").args(["netns", "delete", &self.name]).status();
        if !status.as_ref().is_ok_and(|status| status.success()) {
            eprintln!("could not delete namespace {}: {status:?}", self.name);
        }
    }
}

/// Says whether a test that needs root cannot run; with `E2E_REQUIRED=1` it panics instead.
pub(crate) fn skip(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    assert!(env::var_os("E2E_REQUIRED").is_none_or(|v| v != "1"), "{test} needs root");
    eprintln!("skipped {test}: needs root");
    true
}

fn config(test: &str, index: u8) -> PlaneConfig {
    let file = format!("{}-{}", test.trim_start_matches("perch-net-"), index);
    PlaneConfig {
        pin: env::temp_dir().join(format!("perch-net-{}-{file}", process::id())),
        outside: format!("perch{index}"),
        host_link: (
            Ipv4Addr::new(172, 31, 255, 4 * index),
            Ipv4Addr::new(172, 31, 255, 4 * index + 1),
        ),
        public_v6: Prefix {
            addr: Ipv6Addr::from_bits(0x2001_0db8_0005 << 80 | u128::from(index) << 64),
            len: if index == 0 { 48 } else { 64 },
        },
        shared_v4: Ipv4Addr::new(192, 0, 2, 10 + index),
        dns: v6("fdaa::3"),
        host_access: HostAccess::All,
        call_limits: CallLimits { connections_per_second: 500, datagrams_per_second: 10_000 },
    }
}

fn ensure(host: &NamedNetns, config: &PlaneConfig) -> Plane {
    run_in(host.as_fd(), || Plane::ensure(config)).expect("enter the host").expect("ensure")
}

fn snapshot(netns: BorrowedFd<'_>) -> String {
    let commands = [
        "ip -o link",
        "ip -o addr",
        "ip route show table all",
        "ip -6 route show table all",
        "ip rule",
        "nft list ruleset",
    ];
    commands.map(|command| output(netns, command)).join("\n")
}

/// Runs a command inside a namespace and returns what it prints.
pub(crate) fn output(netns: BorrowedFd<'_>, command: &str) -> String {
    let mut words = command.split_whitespace();
    let mut program = Command::new(words.next().expect("a program"));
    program.args(words);
    let output = run_in(netns, || program.output()).expect("enter").expect("it is installed");
    assert_success(command, &output);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn ip(netns: BorrowedFd<'_>, arguments: &str) {
    output(netns, &format!("ip {arguments}"));
}

fn assert_success(command: &str, output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {stderr}");
}

pub(crate) fn prefix(text: &str) -> Prefix48 {
    Prefix48::of(v6(text))
}

pub(crate) fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("a literal address")
}

pub(crate) fn v4(text: &str) -> Ipv4Addr {
    text.parse().expect("a literal address")
}

/// Connects from inside a namespace.
pub(crate) fn dial(
    netns: BorrowedFd<'_>,
    (addr, port): (impl Into<IpAddr>, u16),
) -> io::Result<TcpStream> {
    let addr = SocketAddr::new(addr.into(), port);
    let dialled = run_in(netns, || TcpStream::connect_timeout(&addr, DIAL_TIMEOUT));
    dialled.expect("enter the namespace")
}

/// Connects from inside a namespace as another user and group.
pub(crate) fn dial_as(
    netns: BorrowedFd<'_>,
    (uid, gid): (u32, u32),
    addr: SocketAddr,
) -> io::Result<TcpStream> {
    // Of this thread only, which ends.
    let dialled = run_in(netns, || {
        become_user(uid, gid)?;
        TcpStream::connect_timeout(&addr, DIAL_TIMEOUT)
    });
    dialled.expect("enter the namespace")
}

/// Makes the calling thread another user's.
pub(crate) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_gid(rustix::process::Gid::from_raw(gid))?;
    Ok(rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(uid))?)
}

/// Takes the next connection of a listener: stream, own address, peer.
pub(crate) fn accept(listener: &OwnedFd) -> (TcpStream, SocketAddr, SocketAddr) {
    wait_readable(listener);
    let copy = listener.try_clone().expect("a copy");
    let (stream, peer) = TcpListener::from(copy).accept().expect("a connection waits");
    stream.set_nonblocking(false).expect("blocking");
    let local = stream.local_addr().expect("it has an address");
    (stream, local, peer)
}

/// Waits until there is something to accept or to read.
pub(crate) fn wait_readable(socket: impl AsFd) {
    let timeout = Timespec::try_from(ANSWER_TIMEOUT).expect("in range");
    let ready = poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout));
    assert_eq!(ready, Ok(1), "nothing came");
}

/// Proves that bytes pass both ways.
pub(crate) fn say(mut client: TcpStream, mut server: TcpStream) {
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a timeout");
    }
    let mut buffer = [0; 4];
    client.write_all(b"ping").expect("write");
    server.read_exact(&mut buffer).expect("read");
    server.write_all(b"pong").expect("write");
    client.read_exact(&mut buffer).expect("read");
    assert_eq!(&buffer, b"pong");
}

/// Proves that nothing marks the urgent byte on its way.
pub(crate) fn say_urgently(mut from: &TcpStream, mut to: &TcpStream) {
    from.write_all(b"abc").expect("write");
    assert_eq!(send(from, b"!", SendFlags::OOB).expect("write"), 1);
    from.write_all(b"def").expect("write");
    to.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a timeout");
    let mut buffer = [0; 7];
    to.read_exact(&mut buffer).expect("all of it comes");
    assert_eq!(&buffer, b"abc!def");
}

pub(crate) fn listen_in(netns: BorrowedFd<'_>, addr: &str) -> TcpListener {
    run_in(netns, || TcpListener::bind(addr)).expect("enter").expect("bind")
}

pub(crate) fn udp_in(netns: BorrowedFd<'_>, addr: &str) -> UdpSocket {
    let socket = run_in(netns, || UdpSocket::bind(addr)).expect("enter").expect("bind");
    socket.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a timeout");
    socket
}

/// Receives one datagram as text, with the sender's address.
pub(crate) fn receive(socket: &UdpSocket) -> Option<(String, IpAddr)> {
    wait_readable(socket);
    let mut buffer = [0; 64];
    let (len, from) = socket.recv_from(&mut buffer).ok()?;
    Some((String::from_utf8_lossy(&buffer[..len]).into_owned(), from.ip()))
}

/// As the resolver: takes one question and answers it from where it was sent to; who asked.
pub(crate) fn answer(socket: &UdpSocket, question: &str, answer: &str) -> SocketAddr {
    wait_readable(socket);
    let mut buffer = [0; 64];
    let mut control = nix::cmsg_space!(nix::libc::in6_pktinfo);
    let (len, from, info) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let (fd, flags) = (socket.as_raw_fd(), MsgFlags::empty());
        let received = recvmsg::<SockaddrIn6>(fd, &mut slices, Some(&mut control), flags);
        let received = received.expect("the question");
        let info = received.cmsgs().expect("whole").find_map(|message| match message {
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(info),
            _ => None,
        });
        (received.bytes, received.address.expect("an asker"), info.expect("says where to"))
    };
    assert_eq!(buffer.get(..len), Some(question.as_bytes()));
    let info = nix::libc::in6_pktinfo { ipi6_ifindex: 0, ..info };
    let control = [ControlMessage::Ipv6PacketInfo(&info)];
    let slices = [IoSlice::new(answer.as_bytes())];
    let flags = MsgFlags::empty();
    sendmsg(socket.as_raw_fd(), &slices, &control, flags, Some(&from)).expect("answered");
    SocketAddr::V6(from.into())
}

/// Sends one echo request and says whether the answer came. Inside a Machine this also proves that
/// no privilege is needed; elsewhere the group range is opened first.
pub(crate) fn echo(netns: BorrowedFd<'_>, addr: IpAddr) -> bool {
    let IpAddr::V6(addr) = addr else { panic!("IPv6 only") };
    let echo = run_in(netns, || -> io::Result<bool> {
        fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
        let protocol = Some(ipproto::ICMPV6);
        let socket = rustix::net::socket(AddressFamily::INET6, SocketType::DGRAM, protocol)?;
        rustix::net::connect(&socket, &SocketAddr::from((addr, 0)))?;
        let sent = rustix::net::send(
            &socket,
            &[128, 0, 0, 0, 0, 0, 0, 1],
            rustix::net::SendFlags::empty(),
        );
        if sent.is_err() {
            return Ok(false);
        }
        let timeout = Timespec::try_from(ECHO_TIMEOUT).expect("in range");
        poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout))?;
        let mut answer = [0; 64];
        let flags = rustix::net::RecvFlags::DONTWAIT;
        Ok(rustix::net::recv(&socket, &mut answer[..], flags).is_ok() && answer[0] == 129)
    });
    echo.expect("enter the namespace").unwrap_or(false)
}
