//! Two organizations on one host cannot reach each other.

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network};

use crate::stage::{
    AWAKE, check_answer, fly_toml, hello_image, on, private_app, private_app_of, run_in_machine,
    shell_image,
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
fn check_forged_source(host: &Host, six: &str) -> Result<()> {
    let stranger = &host.machines("stranger")?[0].id.clone();
    let friend = &host.machines("friend")?[0];
    let url = format!("http://[{six}]:8081/");
    let call = |id: &str, source: &str| {
        run_in_machine(host, id, &["curl", "-sS", "-m", "3", "--interface", source, &url])
    };
    call(&friend.id, &friend.private_ip)?.ok().context("the friend's own address")?;
    let forged = format!("{}/128", friend.private_ip);
    run_in_machine(host, stranger, &["ip", "-6", "addr", "add", &forged, "dev", "lo"])?.ok()?;
    let answer = call(stranger, &friend.private_ip)?;
    ensure!(!answer.status.success(), "a forged source is let through: {answer}");
    Ok(())
}
