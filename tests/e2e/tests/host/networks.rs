//! Two organizations on one host cannot reach each other.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Entrance, Host, Network};

use crate::stage::{
    AWAKE, SOON, check_answer, fly_toml, hello_image, machine_processes, on, private_app,
    private_app_of, run_in_machine, shell_image,
};

const CONFIG: &str = "organizations = [\"personal\", \"other\"]\nauto_stop_after = \"1s\"\n";

/// What a Machine needs to be reachable over 6PN as well (PN-08).
const ON_6PN: &str = "mkdir -p /www; echo six > /www/index.html; \
    exec busybox httpd -f -p [::]:8081 -h /www";

#[test]
fn two_organizations_cannot_reach_each_other() {
    on(
        || Host::start_with(Network::Open, CONFIG),
        |host| {
            let image = shell_image(host, "six", ON_6PN)?;
            let address = private_app_of(host, "mine", &image, AWAKE)?;
            let six = &host.machines("mine")?[0].private_ip.clone();
            let friend = private_app(host, "friend", AWAKE)?;
            check_reachable(host, &friend, &address, six)?;
            let stranger = stranger(host)?;
            check_unreachable(host, &stranger, &address, six)?;
            check_forged_source(host, six)
        },
    );
}

/// An app of the other organization; public, so that the test can speak to it.
fn stranger(host: &Host) -> Result<String> {
    let dir = host.app_dir("stranger", &fly_toml("stranger", &hello_image(host)?, AWAKE))?;
    let args = ["launch", "--org", "other", "--copy-config", "--name", "stranger", "-y"];
    host.fly_in(&dir, &args)?.ok()?;
    let ips = host.ips("stranger")?;
    let public = ips.into_iter().find(|ip| ip.kind == "v6").context("no public address")?;
    check_answer(&host.get(&public.address, 80, "/")?, "")?;
    Ok(public.address)
}

fn urls(address: &str, six: &str) -> [String; 4] {
    [
        "http://mine.flycast/".to_owned(),
        format!("http://[{address}]/"),
        "http://mine.internal:8081/".to_owned(),
        format!("http://[{six}]:8081/"),
    ]
}

fn check_reachable(host: &Host, from: &str, address: &str, six: &str) -> Result<()> {
    for url in urls(address, six) {
        let answer = host.fetch(from, &url)?;
        check_answer(&answer, "six").with_context(|| format!("{url} from the same network"))?;
    }
    Ok(())
}

fn check_unreachable(host: &Host, from: &str, address: &str, six: &str) -> Result<()> {
    for url in urls(address, six) {
        let answer = host.fetch(from, &url)?;
        ensure!(!answer.body.contains("six"), "{url} answers another organization: {answer:?}");
    }
    Ok(())
}

/// Takes an address of the other network inside the stranger's Machine and calls with it.
///
/// An answer would go to the address's owner and never to the stranger: what counts is what arrives.
fn check_forged_source(host: &Host, six: &str) -> Result<()> {
    let (friend, stranger) = (&host.machines("friend")?[0], &host.machines("stranger")?[0]);
    let url = format!("http://[{six}]:8081/");
    let own = ["curl", "-sS", "-m", "3", "--interface", &friend.private_ip, &url];
    run_in_machine(host, &friend.id, &own)?.ok().context("the friend's own address")?;
    let forged = format!("{}/128", friend.private_ip);
    run_in_machine(host, &stranger.id, &["ip", "-6", "addr", "add", &forged, "dev", "lo"])?.ok()?;

    let mine = &host.machines("mine")?[0];
    let listener = network_of(host, &mine.id)?.inside(|| Ok(UdpSocket::bind("[::]:0")?))?;
    listener.set_read_timeout(Some(SOON))?;
    let target: SocketAddr = format!("[{six}]:{}", listener.local_addr()?.port()).parse()?;
    let send = |id: &str, text: &str| -> Result<()> {
        network_of(host, id)?.inside(|| {
            let socket = UdpSocket::bind(format!("[{}]:0", friend.private_ip))?;
            // That the kernel lets it go is no promise that it arrives.
            socket.send_to(text.as_bytes(), target).map(drop).context("sending a datagram")
        })
    };
    for _ in 0..3 {
        send(&stranger.id, "forged")?;
        send(&friend.id, "own")?;
    }
    let mut buffer = [0; 16];
    for _ in 0..3 {
        let (read, from) = listener.recv_from(&mut buffer).context("the friend's datagrams")?;
        let text = String::from_utf8_lossy(&buffer[..read]);
        ensure!(text == "own", "a datagram that is {text} arrives from {from}");
    }
    Ok(())
}

/// The network namespace of a Machine.
fn network_of(host: &Host, id: &str) -> Result<Entrance> {
    let process = machine_processes(host, id).pop().context("the Machine does not run")?;
    Entrance::of(&process)
}
