//! Raw TCP services, unpublished ports and echo requests.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use perch_testkit::{Entry, Image, holds_for};
use rustix::net::{SendFlags, send};

use crate::real_http::Caller;
use crate::stage::{
    SNIPPET, SOON, on_host, one_machine_of, private_app, private_app_of, shell_image, wait_asleep,
};

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
fn what_comes_with_an_urgent_byte_goes_on_at_once() {
    on_host(|host| {
        let image = shell_image(host, "db", ECHO)?;
        let raw = private_app_of(host, "db", &image, SERVICE)?;
        let web = private_app(host, "web", SNIPPET)?;
        let http = ["GET /headers HTTP/1.1\r\nHost: ", "a", "\r\nConnection: close\r\n\r\n"];
        for (app, address, port, said, answered) in [
            ("db", raw, 5432, ["abc", "!", "def"], "abc!def"),
            ("web", web, 80, http, " got GET /headers with 0 bytes\n"),
        ] {
            // Nothing is read before it is awake: all of it comes at once.
            wait_asleep(host, app)?;
            let target = SocketAddr::new(address.parse::<IpAddr>()?, port);
            let mut stream = host.inside(|| Ok(TcpStream::connect_timeout(&target, SOON)?))?;
            stream.set_read_timeout(Some(SOON))?;
            for (piece, flags) in said.iter().zip([0, 1, 0]) {
                let flags = if flags == 1 { SendFlags::OOB } else { SendFlags::empty() };
                ensure!(send(&stream, piece.as_bytes(), flags)? == piece.len(), "not taken");
            }
            let (mut heard, mut byte) = (Vec::new(), [0]);
            while !String::from_utf8_lossy(&heard).contains(answered) {
                let heard_so_far = || format!("heard {:?}", String::from_utf8_lossy(&heard));
                ensure!(stream.read(&mut byte).with_context(heard_so_far)? == 1, "{app} ended");
                heard.extend(byte);
            }
        }
        Ok(())
    });
}

/// Wants the PROXY protocol, and tells each caller who it is and what it has asked for.
const HAPROXY: &str = "\
global
  maxconn 100
defaults
  mode http
  timeout client 60s
  timeout connect 5s
  timeout server 5s
frontend all
  bind 0.0.0.0:8080 accept-proxy
  http-request return status 200 content-type text/plain lf-string \"%[src] %[dst]:%[dst_port]\"
";

const PROXY_PROTOCOL: &str = "\
[[services]]
  protocol = 'tcp'
  internal_port = 8080
  auto_stop_machines = 'suspend'
  auto_start_machines = true
  min_machines_running = 0
  [[services.ports]]
    port = 8001
    handlers = ['proxy_proto']
  [[services.ports]]
    port = 8002
    handlers = ['proxy_proto']
    proxy_proto_options = { version = 'v2' }
";

#[test]
fn haproxy_learns_its_callers_by_both_forms_of_the_proxy_protocol_over_sleeps() {
    on_host(|host| {
        let config = Entry::File(HAPROXY.as_bytes().to_vec(), 0o644);
        let image = Image::program("haproxy", "haproxy")?.entry("haproxy.cfg", &config);
        let image = image.entrypoint(&["/haproxy", "-db", "-f", "/haproxy.cfg"]);
        let image = image.write(&host.dir().join("haproxy-image"))?;
        let address = one_machine_of(host, "who", &image, PROXY_PROTOCOL)?;
        let ip: IpAddr = address.parse()?;
        let connect = |port| host.inside(|| Caller::connect(SocketAddr::new(ip, port)));
        host.wait_all("who", "suspended", SOON)?;
        let (mut text, mut binary) = (connect(8001)?, connect(8002)?);
        for round in 0..2 {
            for (caller, port) in [(&mut text, 8001), (&mut binary, 8002)] {
                let said = caller.get("/")?;
                let (caller, asked) = said.split_once(' ').unwrap_or_default();
                ensure!(caller.starts_with("fdaa:") && caller != address, "round {round}: {said}");
                ensure!(asked == format!("{address}:{port}"), "round {round}: {said}");
            }
            if round == 0 {
                host.wait_all("who", "suspended", SOON)?;
            }
        }
        Ok(())
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
        // Who is not refused waits for 65 s.
        ensure!(started.elapsed() < SOON, "refused only after {started:?}");
        host.run("ping", &["-6", "-c1", "-W2", &address])?.ok()?;
        ensure!(host.states("quotes")?.iter().all(|s| s == "stopped"), "ping or a refusal woke it");
        Ok(())
    });
}
