//! A host whose own firewall drops everything, and one that loses all its rules.

use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network, wait_until};

use crate::stage::{
    AWAKE, QUICK_SLEEP, SNIPPET, SOON, check_answer, on, private_app, run_in_machine, wait_asleep,
};

/// Where the world begins, of what is set aside for examples.
const WORLD: &str = "198.51.100.2";
/// A service of the host's own.
const SERVICE_PORT: &str = "9999";
/// A network behind the host with a web server in it.
const MAKE_WORLD: &str = "\
    mkdir -p world; echo world > world/index.html; \
    unshare --net busybox httpd -f -p 80 -h world >/dev/null 2>&1 & pid=$!; \
    until [ \"$(readlink /proc/$pid/ns/net)\" != \"$(readlink /proc/self/ns/net)\" ]; do :; done; \
    ip link add world0 type veth peer name eth0 netns $pid && ip link set world0 up && \
    ip addr add 198.51.100.1/24 dev world0 && \
    nsenter --net=/proc/$pid/ns/net sh -c \
        'ip addr add 198.51.100.2/24 dev eth0 && ip link set eth0 up'";

#[test]
fn a_firewall_with_drop_policies_does_not_meet_private_apps() {
    on(
        || Host::start_with(Network::Firewalled, QUICK_SLEEP),
        |host| {
            host.run("bash", &["-c", MAKE_WORLD])?.ok()?;
            let caller = private_app(host, "caller", AWAKE)?;
            check_path(host, &caller, "quotes")?;
            // What COMPAT asks of somebody whose firewall forwards nothing.
            for rule in ["iifname \"perch*\" accept", "ct state established,related accept"] {
                let add = format!("insert rule inet filter forward {rule}");
                host.run("nft", &[&add])?.ok()?;
            }
            check_egress(host)?;

            host.run("nft", &["flush", "ruleset"])?.ok()?;
            check_path(host, &caller, "later")?;
            check_wakes(host, &caller, "quotes")?;
            wait_until("egress to be back after the flush", SOON, || check_egress(host).map(Some))
        },
    );
}

#[test]
fn machines_do_not_reach_the_hosts_services_whatever_happens_to_its_rules() {
    on(
        || {
            let mut host = Host::bare(Network::Open)?;
            host.configure(QUICK_SLEEP);
            // An address that the host gets later is known within seconds only.
            host.run("bash", &["-c", MAKE_WORLD])?.ok()?;
            host.start_server()?;
            Ok(host)
        },
        |host| {
            let service = Service::start(host)?;
            private_app(host, "caller", AWAKE)?;
            check_host_is_out_of_reach(host).context("before the flush")?;
            host.run("nft", &["flush", "ruleset"])?.ok()?;
            check_host_is_out_of_reach(host).context("after the flush")?;
            wait_until("the rules to be back", SOON, || check_egress(host).map(Some))?;
            check_host_is_out_of_reach(host).context("when the rules are back")?;
            drop(service);
            Ok(())
        },
    );
}

/// Launched, asleep, woken from another Machine by its name, and from the host by its address.
fn check_path(host: &Host, caller: &str, app: &str) -> Result<()> {
    private_app(host, app, SNIPPET)?;
    check_wakes(host, caller, app)
}

fn check_wakes(host: &Host, caller: &str, app: &str) -> Result<()> {
    wait_asleep(host, app)?;
    check_answer(&host.fetch(caller, &format!("http://{app}.flycast/"))?, "Hello from")?;
    wait_asleep(host, app)?;
    let woken = host.get(&host.flycast(app)?, 80, "/")?;
    ensure!(woken.header("perch-wake").is_some(), "nothing was woken for {woken:?}");
    check_answer(&woken, "Hello from")
}

/// Calls from the first Machine of the caller's app.
fn call(host: &Host, address: &str, port: &str) -> Result<perch_testkit::Output> {
    let id = &host.machines("caller")?[0].id.clone();
    let url = format!("http://{address}:{port}/");
    run_in_machine(host, id, &["curl", "-gsS", "-m", "2", &url])
}

fn check_egress(host: &Host) -> Result<()> {
    call(host, WORLD, "80")?.says(&["world"])
}

/// None of the host's addresses takes a Machine's connection, whatever listens there.
fn check_host_is_out_of_reach(host: &Host) -> Result<()> {
    let listed = host.run("ip", &["-o", "addr", "show", "scope", "global"])?.ok()?;
    let field = |line: &str| line.split_whitespace().nth(3).map(str::to_owned);
    let mut addresses: Vec<String> = listed.lines().filter_map(field).collect();
    ensure!(addresses.iter().any(|it| it.contains(':')), "the host has no IPv6: {listed}");
    ensure!(addresses.iter().any(|it| it.contains('.')), "the host has no IPv4: {listed}");
    for address in &mut addresses {
        let bare = address.split('/').next().context("an address")?;
        *address = if bare.contains(':') { format!("[{bare}]") } else { bare.to_owned() };
        let own = format!("http://{address}:{SERVICE_PORT}/");
        host.run("curl", &["-gsS", "-m", "5", &own])?.ok().context("from the host itself")?;
        let answer = call(host, address, SERVICE_PORT)?;
        ensure!(!answer.status.success(), "a Machine reaches the host: {answer}");
    }
    Ok(())
}

/// A web server on all addresses of the host.
struct Service(Child);

impl Service {
    fn start(host: &Host) -> Result<Self> {
        let port = format!("[::]:{SERVICE_PORT}");
        let args = ["httpd", "-f", "-p", &port, "-h", "world"];
        let mut command = host.command("busybox", &args);
        Ok(Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
