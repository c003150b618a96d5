//! One Machine that calls too much is held back, and nobody else.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Entrance, Host, Network, wait_until};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use crate::stage::{
    AWAKE, QUICK_SLEEP, SOON, check_answer, hello_image, machine_processes, on, one_machine_of,
};

const LIMITS: &str = "caller_connections_max = 5\ncaller_connections_per_second = 20\n\
    caller_datagrams_per_second = 20\n";
const WEB: &str = "\
[env]
  UDP_PORT = '9999'
[http_service]
  internal_port = 8081
  force_https = false
  auto_stop_machines = 'off'
[[services]]
  protocol = 'udp'
  internal_port = 9999
  auto_stop_machines = 'off'
  [[services.ports]]
    port = 5300
";
/// Far more than may come in the time in which they are sent.
const FLOOD: usize = 1000;

#[test]
fn a_machine_that_floods_is_held_back_and_named_and_others_are_answered() {
    let limited = || Host::start_with(Network::Open, &format!("{QUICK_SLEEP}{LIMITS}"));
    on(limited, |host| {
        let image = hello_image(host)?;
        let web: IpAddr = one_machine_of(host, "web", &image, WEB)?.parse()?;
        let calm = one_machine_of(host, "calm", &image, AWAKE)?;
        one_machine_of(host, "flood", &image, AWAKE)?;
        let (inside, address) = machine(host, "flood")?;
        let (_, calm_address) = machine(host, "calm")?;
        let _open = inside.inside(|| flood(SocketAddr::new(web, 80)))?;
        inside.inside(|| {
            let socket = UdpSocket::bind("[::]:0")?;
            for _ in 0..FLOOD {
                // A full buffer on the way is a limit as well.
                socket.send_to(b"x", SocketAddr::new(web, 5300)).ok();
            }
            Ok(())
        })?;
        // Others are as before: a Machine that asks, and the host.
        let url = format!("http://[{web}]/");
        for _ in 0..3 {
            check_answer(&host.fetch(&calm, &url)?, "Hello")?;
            check_answer(&host.get(&web.to_string(), 80, "/")?, "Hello")?;
        }
        for set in ["called_often6", "sent_often6"] {
            let held = host.run_in_plane("nft", &["list", "set", "inet", "perch", set])?.ok()?;
            ensure!(held.contains(&address), "{set} does not name {address}: {held}");
            ensure!(!held.contains(&calm_address), "{set} names {calm_address}: {held}");
        }
        says(host, "flood", "opens more than 20 connections a second")?;
        says(host, "flood", "sends more than 20 datagrams a second")?;
        says(host, "web", "as many connections as it may have")?;
        wait_until("the ledger to name the refusal", SOON, || {
            let why = host.fly(&["why", "-a", "web", "--events", "-n", "100"])?.ok()?;
            Ok(why.contains("as many connections as it may have").then_some(()))
        })
    });
}

/// The network of an app's Machine, and its address.
fn machine(host: &Host, app: &str) -> Result<(Entrance, String)> {
    let id = host.machines(app)?.pop().context("no Machine")?.id;
    let process = machine_processes(host, &id).pop().context("the Machine does not run")?;
    let told = host.fly(&["machine", "list", "--json", "-a", app])?.json()?;
    let address = told[0]["private_ip"].as_str().context("no address")?;
    Ok((Entrance::of(&process)?, address.to_owned()))
}

/// Begins many connections at once, and keeps them.
fn flood(target: SocketAddr) -> Result<Vec<std::os::fd::OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let mut open = Vec::new();
    for _ in 0..FLOOD {
        let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None)?;
        match connect(&socket, &target) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => open.push(socket),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(open)
}

fn says(host: &Host, app: &str, text: &str) -> Result<()> {
    wait_until(&format!("the log of {app} to say `{text}`"), SOON, || {
        let log = host.fly(&["logs", "--no-tail", "-a", app])?.ok()?;
        Ok(log.contains(text).then_some(()))
    })
}
