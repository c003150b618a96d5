//! `fly proxy` to apps of every network, and to none from another.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network, Output, wait_until};
use tempfile::NamedTempFile;

use crate::stage::{
    AWAKE, SNIPPET, SOON, check_answer, fly_toml, on, private_app_of, shell_image, wait_asleep,
};

const CONFIG: &str = "organizations = [\"personal\", \"other\"]\nauto_stop_after = \"1s\"\n";

/// An app that says who it is.
fn image(host: &Host, name: &str) -> Result<String> {
    let script = format!(
        "mkdir -p /www; echo {name} > /www/index.html; exec busybox httpd -f -p [::]:8081 -h /www"
    );
    shell_image(host, name, &script)
}

/// A private app of the other organization.
fn stranger(host: &Host, sections: &str) -> Result<String> {
    let dir =
        host.app_dir("stranger", &fly_toml("stranger", &image(host, "stranger")?, sections))?;
    let args =
        ["launch", "--org", "other", "--flycast", "--copy-config", "--name", "stranger", "-y"];
    host.fly_in(&dir, &args)?.ok()?;
    host.flycast("stranger")
}

/// A `fly proxy` at work; dropped, it ends.
struct Proxy {
    child: Child,
    port: u16,
    /// What it complains about.
    said: NamedTempFile,
}

impl Proxy {
    fn start(host: &Host, args: &[&str]) -> Result<Self> {
        let mut command = host.fly_command(host.dir(), &[&["proxy"], args].concat());
        let said = NamedTempFile::new_in(host.dir())?;
        let mut child = command.stdout(Stdio::piped()).stderr(said.reopen()?).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let port = line.strip_prefix("Proxying localhost:").and_then(|rest| rest.split(' ').next());
        let port = port.and_then(|port| port.parse().ok());
        Ok(Self { child, port: port.with_context(|| format!("no port in {line:?}"))?, said })
    }

    fn get(&self, host: &Host) -> Result<perch_testkit::Response> {
        host.get("127.0.0.1", self.port, "/")
    }

    /// Waits until it complains so: the caller may be let go a moment before.
    fn await_complaint(&self, part: &str) -> Result<()> {
        wait_until("the complaint", SOON, || {
            let said = fs::read_to_string(&self.said)?;
            ensure!(said.contains(part), "{said:?}");
            Ok(Some(()))
        })
    }

    fn end(mut self, host: &Host) {
        // What was started is a program that entered the host; the proxy itself is inside.
        for process in host.perch_processes("fly") {
            if process.args.iter().any(|arg| arg == "proxy") {
                drop(process.kill());
            }
        }
        drop(self.child.wait());
    }
}

#[test]
fn an_app_of_another_organization_is_woken_and_reached() {
    on(
        || Host::start_with(Network::Open, CONFIG),
        |host| {
            stranger(host, SNIPPET)?;
            wait_asleep(host, "stranger")?;
            let proxy = Proxy::start(host, &["0:80", "-a", "stranger"])?;
            check_answer(&proxy.get(host)?, "stranger")?;
            let id = host.machines("stranger")?.into_iter().find(|it| it.state == "started");
            let id = id.context("none was woken")?.id;
            let path = format!("/v1/apps/stranger/machines/{id}");
            let events = host.api(&path)?["events"].to_string();
            ensure!(events.contains("by `fly proxy`"), "its events say nothing of it: {events}");
            proxy.end(host);
            Ok(())
        },
    );
}

#[test]
fn an_open_local_port_outlives_the_server() {
    on(
        || Host::start_with(Network::Open, CONFIG),
        |host| {
            stranger(host, AWAKE)?;
            let proxy = Proxy::start(host, &["0:80", "-a", "stranger"])?;
            check_answer(&proxy.get(host)?, "stranger")?;
            host.kill_server()?;
            ensure!(proxy.get(host).is_err(), "answered without a server");
            host.start_server()?;
            check_answer(&proxy.get(host)?, "stranger")?;
            proxy.end(host);
            Ok(())
        },
    );
}

#[test]
fn machines_are_reached_over_6pn_from_their_own_network_only() {
    on(
        || Host::start_with(Network::Open, CONFIG),
        |host| {
            let address = stranger(host, AWAKE)?;
            private_app_of(host, "mine", &image(host, "mine")?, AWAKE)?;
            host.wait_all("stranger", "started", SOON)?;
            let six = host.machines("stranger")?[0].private_ip.clone();
            let own = Proxy::start(host, &["0:8081", &six, "-a", "stranger"])?;
            check_answer(&own.get(host)?, "stranger")?;
            own.end(host);
            for (ports, target) in [("0:80", &address), ("0:8081", &six)] {
                let foreign = Proxy::start(host, &[ports, target, "-a", "mine"])?;
                let answer = foreign.get(host);
                ensure!(
                    !answer.is_ok_and(|answer| answer.body.contains("stranger")),
                    "{target} answers another organization"
                );
                foreign.await_complaint("cannot be called from the network of app mine")?;
                foreign.end(host);
            }
            Ok(())
        },
    );
}

#[test]
fn what_is_no_port_or_no_app_is_refused_at_once() {
    on(
        || Host::start_with(Network::Open, CONFIG),
        |host| {
            let refused = |args: &[&str], part: &str| -> Result<()> {
                let output: Output = host.fly(args)?;
                output.says(&[part])?;
                output.fails().map(drop)
            };
            refused(&["proxy", "80:0", "-a", "web"], "does not name two ports")?;
            refused(&["proxy", "0:80", "-a", "nobody"], "nobody")
        },
    );
}
