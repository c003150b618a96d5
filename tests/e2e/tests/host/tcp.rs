//! Raw TCP services, unpublished ports and echo requests.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::ensure;
use perch_testkit::holds_for;

use crate::stage::{SNIPPET, SOON, on_host, private_app, private_app_of, shell_image, wait_asleep};

const SERVICE: &str = "\
[[services]]
  protocol = 'tcp'
  internal_port = 5432
  auto_stop_machines = 'stop'
  auto_start_machines = true
  min_machines_running = 0
  [[services.ports]]
    port = 5432
";

/// Sends back what it gets, and the end of it.
const ECHO: &str = "exec busybox nc -ll -p 5432 -e /bin/busybox cat";

#[test]
fn a_tcp_connection_wakes_is_carried_both_ways_and_keeps_awake() {
    on_host(|host| {
        let image = shell_image(host, "db", ECHO)?;
        let address = private_app_of(host, "db", &image, SERVICE)?;
        wait_asleep(host, "db")?;
        let target = SocketAddr::new(address.parse::<IpAddr>()?, 5432);
        let mut stream = host.inside(|| Ok(TcpStream::connect_timeout(&target, SOON)?))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"select 1;")?;
        let mut answer = [0; 9];
        stream.read_exact(&mut answer)?;
        ensure!(&answer == b"select 1;", "not echoed: {answer:?}");
        holds_for("an open connection keeps the Machine awake", Duration::from_secs(4), || {
            Ok(host.states("db")?.contains(&"started".to_owned()))
        })?;
        stream.write_all(b"bye")?;
        stream.shutdown(Shutdown::Write)?;
        let mut rest = String::new();
        stream.read_to_string(&mut rest)?;
        ensure!(rest == "bye", "half-close lost the rest: {rest:?}");
        wait_asleep(host, "db")
    });
}

#[test]
fn an_unpublished_port_is_refused_and_ping_is_answered_while_nothing_runs() {
    on_host(|host| {
        let address = private_app(host, "quotes", SNIPPET)?;
        wait_asleep(host, "quotes")?;
        let started = Instant::now();
        ensure!(host.get(&address, 81, "/").is_err(), "port 81 answers (FC-30)");
        let unassigned = address.rsplit_once("::").map_or("", |(prefix, _)| prefix);
        ensure!(host.get(&format!("{unassigned}::fff0"), 80, "/").is_err(), "nobody's address");
        ensure!(started.elapsed() < Duration::from_secs(2), "refused only after {started:?}");
        host.run("ping", &["-6", "-c1", "-W2", &address])?.ok()?;
        ensure!(host.states("quotes")?.iter().all(|s| s == "stopped"), "ping or a refusal woke it");
        Ok(())
    });
}
