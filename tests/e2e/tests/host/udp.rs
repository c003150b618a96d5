//! UDP services at Flycast addresses.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Entrance, Host, Network, wait_until};

use crate::stage::{
    AWAKE, SOON, check_answer, fly_toml, hello_image, machine_processes, on, on_host,
    one_machine_of, private_app, shell_image, wait_asleep,
};

/// The example app answers datagrams to some ports, of which one is the platform's own for DNS elsewhere.
const ECHO: &str = "\
[env]
  UDP_PORT = '9999'
[[services]]
  protocol = 'udp'
  internal_port = 9999
  auto_stop_machines = 'stop'
  auto_start_machines = true
  min_machines_running = 0
  [[services.ports]]
    port = 5300
  [[services.ports]]
    port = 53
  [[services.ports]]
    start_port = 6000
    end_port = 6100
";

const DEAF: &str = "\
[[services]]
  protocol = 'udp'
  internal_port = 9999
  ports = [{ port = 5300 }]
";

fn echo(host: &Host, app: &str, sections: &str) -> Result<IpAddr> {
    let image = hello_image(host)?;
    let dir = host.app_dir(app, &fly_toml(app, &image, sections))?;
    let args = ["launch", "--flycast", "--copy-config", "--name", app, "--ha=false", "--yes"];
    let said = host.fly_in(&dir, &args)?.ok()?;
    ensure!(said.contains(&format!("{app}.flycast:53/udp")), "it is not told: {said}");
    ensure!(!said.contains("not served"), "deploy says otherwise: {said}");
    Ok(host.flycast(app)?.parse()?)
}

/// A caller on the host, who only hears whom he calls.
fn caller(host: &Host, at: SocketAddr) -> Result<UdpSocket> {
    host.inside(|| connected("[::]:0", at))
}

fn connected(from: &str, at: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(from)?;
    socket.connect(at)?;
    socket.set_read_timeout(Some(SOON))?;
    Ok(socket)
}

/// What came back: its number at the Machine, the peer that the Machine saw, and the text.
fn hear(socket: &UdpSocket) -> Result<(u64, SocketAddr, String)> {
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).context("no answer")?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let mut words = text.splitn(3, ' ');
    let mut word = || words.next().with_context(|| format!("another answer: {text}"));
    Ok((word()?.parse()?, word()?.parse()?, word()?.to_owned()))
}

/// Says some things at once, and hears all of them in order.
fn check_in_order(socket: &UdpSocket, count: u64) -> Result<()> {
    for number in 1..=count {
        socket.send(format!("text {number}").as_bytes())?;
    }
    for number in 1..=count {
        let (heard, peer, text) = hear(socket)?;
        ensure!(text == format!("text {number}"), "number {heard} is {text}, not text {number}");
        ensure!(peer.ip().to_string().starts_with("172.16."), "the Machine saw {peer} (FC-47)");
    }
    Ok(())
}

#[test]
fn the_first_datagrams_wake_a_stopped_machine_and_reach_it_in_order_and_silence_lets_it_sleep() {
    on_host(|host| {
        let address = echo(host, "echo", ECHO)?;
        wait_asleep(host, "echo")?;
        // The socket is connected, so that the kernel passes answers of that address and port only.
        let caller = caller(host, SocketAddr::new(address, 5300))?;
        check_in_order(&caller, 16)?;
        for port in [6050, 53] {
            let other = self::caller(host, SocketAddr::new(address, port))?;
            check_in_order(&other, 3)?;
        }
        let event = format!("a datagram at [{address}]:5300 by the host");
        let told = host.fly(&["machine", "status", &host.machines("echo")?[0].id])?.ok()?;
        ensure!(told.contains(&event), "the wake is not explained by `{event}`: {told}");
        let silence = Duration::from_secs(60);
        host.wait_all("echo", "stopped", silence)?;
        check_in_order(&caller, 2)
    });
}

#[test]
fn a_suspended_machine_is_thawed_by_a_datagram_and_large_ones_pass() {
    on_host(|host| {
        let address = echo(host, "echo", &ECHO.replace("'stop'", "'suspend'"))?;
        host.wait_all("echo", "suspended", SOON)?;
        let caller = caller(host, SocketAddr::new(address, 5300))?;
        check_in_order(&caller, 5)?;
        let large = "x".repeat(9000);
        caller.send(large.as_bytes())?;
        let mut buffer = vec![0; 10_000];
        let length = caller.recv(&mut buffer)?;
        ensure!(buffer[..length].ends_with(large.as_bytes()), "cut to {length} bytes");
        let machine = &host.machines("echo")?[0];
        ensure!(machine.events("launch") == 1, "it was started anew: {machine:?}");
        // Put to sleep under an open session, it is woken by the session's next datagram.
        host.fly(&["machine", "suspend", &machine.id, "-a", "echo"])?.ok()?;
        host.wait_all("echo", "suspended", SOON)?;
        check_in_order(&caller, 3)
    });
}

#[test]
fn ports_without_a_udp_service_are_unreachable_and_wake_nobody() {
    on_host(|host| {
        let address: IpAddr =
            private_app(host, "web", &AWAKE.replace("\"off\"", "\"stop\""))?.parse()?;
        wait_asleep(host, "web")?;
        for port in [80, 5300] {
            let caller = caller(host, SocketAddr::new(address, port))?;
            caller.send(b"anybody?")?;
            let error = caller.recv(&mut [0; 16]).err().context("somebody answers")?;
            ensure!(error.kind() == ErrorKind::ConnectionRefused, "port {port}: {error}");
        }
        ensure!(host.states("web")?.iter().all(|state| state == "stopped"), "it was woken");
        Ok(())
    });
}

#[test]
fn two_machines_that_call_from_the_same_port_are_told_apart_and_a_stranger_is_not_heard() {
    let config = "organizations = [\"personal\", \"other\"]\nauto_stop_after = \"1s\"\n";
    on(
        || Host::start_with(Network::Open, config),
        |host| {
            let address = echo(host, "echo", ECHO)?;
            for app in ["first", "second"] {
                private_app(host, app, AWAKE)?;
            }
            let image = hello_image(host)?;
            let dir = host.app_dir("stranger", &fly_toml("stranger", &image, AWAKE))?;
            let args = ["launch", "--org", "other", "--copy-config", "--name", "stranger", "-y"];
            host.fly_in(&dir, &args)?.ok()?;
            wait_asleep(host, "echo")?;

            let at = SocketAddr::new(address, 5300);
            let stranger = network_of(host, "stranger")?.inside(|| connected("[::]:4000", at))?;
            stranger.set_read_timeout(Some(Duration::from_secs(2)))?;
            stranger.send(b"hello")?;
            ensure!(stranger.recv(&mut [0; 64]).is_err(), "a stranger is answered");
            ensure!(host.states("echo")? == ["stopped"], "a stranger woke it");

            let of = |app: &str| network_of(host, app)?.inside(|| connected("[::]:4000", at));
            let (first, second) = (of("first")?, of("second")?);
            let mut peers = Vec::new();
            for round in 0..3 {
                for (socket, name) in [(&first, "first"), (&second, "second")] {
                    socket.send(format!("{name} {round}").as_bytes())?;
                }
                for (socket, name) in [(&first, "first"), (&second, "second")] {
                    let (_, peer, text) = hear(socket)?;
                    ensure!(text == format!("{name} {round}"), "{name} hears {text}");
                    peers.push(peer);
                }
            }
            ensure!(peers[0] != peers[1], "the Machine cannot tell them apart");
            ensure!(peers[0] == peers[4] && peers[1] == peers[5], "their sessions changed");
            Ok(())
        },
    );
}

/// The network namespace of an app's Machine.
fn network_of(host: &Host, app: &str) -> Result<Entrance> {
    let machines = host.machines(app)?;
    let id = &machines.first().context("it has no Machine")?.id;
    Entrance::of(&machine_processes(host, id).pop().context("the Machine does not run")?)
}

#[test]
fn what_comes_while_no_proxy_lives_waits_for_the_next_one() {
    on_host(|host| {
        let address = echo(host, "echo", ECHO)?;
        let caller = caller(host, SocketAddr::new(address, 5300))?;
        check_in_order(&caller, 1)?;
        let proxy = host.kill_proxy()?;
        check_in_order(&caller, 10).with_context(|| format!("after the end of {}", proxy.pid))?;
        let other = self::caller(host, SocketAddr::new(address, 5300))?;
        check_in_order(&other, 2)
    });
}

#[test]
fn a_flood_is_bounded_and_counted_and_other_apps_answer_meanwhile() {
    on_host(|host| {
        let web = private_app(host, "web", AWAKE)?;
        let address = echo(host, "echo", ECHO)?;
        let calm = caller(host, SocketAddr::new(address, 5300))?;
        check_in_order(&calm, 1)?;
        // Nothing reads there, so all that is kept is kept until the end.
        let deaf = shell_image(host, "deaf", "exec sleep 1000000")?;
        let deaf = one_machine_of(host, "deaf", &deaf, DEAF)?.parse::<IpAddr>()?;
        let flooders = (0..64)
            .map(|_| caller(host, SocketAddr::new(deaf, 5300)))
            .collect::<Result<Vec<_>>>()?;
        for round in 0..100 {
            for flooder in &flooders {
                // A full buffer on the way is a limit as well.
                let _sent = flooder.send(&[b'x'; 1200]).is_ok();
            }
            if round % 20 == 0 {
                check_answer(&host.get(&web, 80, "/")?, "Hello")?;
                check_heard(&calm)?;
            }
        }
        let text = wait_until("the log tells what was lost", SOON, || {
            let log = host.fly(&["logs", "--no-tail", "-a", "deaf"])?.ok()?;
            let mut lines = log.lines().filter(|line| line.contains("lost datagrams to port 5300"));
            Ok(lines.next_back().map(ToOwned::to_owned))
        })?;
        ensure!(text.contains("while their Machine woke"), "another reason: {text}");
        check_heard(&calm)
    });
}

/// Asks until there is an answer: in a flood a datagram may be lost on its way.
fn check_heard(socket: &UdpSocket) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    for _ in 0..15 {
        socket.send(b"there?")?;
        if hear(socket).is_ok() {
            return Ok(());
        }
    }
    bail!("another app's service is silent")
}
