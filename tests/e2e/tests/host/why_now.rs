//! What an app is awake for just now, as `fly why` and the API tell it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, wait_until};
use serde_json::{Value, json};

use crate::stage::{
    AWAKE, SNIPPET, SOON, check_answer, hello_image, on_host, one_machine_of, shell_image,
};
use crate::suspend::SUSPENDS;

/// The example app by HTTP, by raw TCP, and by datagrams.
const ALL_KINDS: &str = "\
[env]
  UDP_PORT = '9999'
[[services]]
  protocol = 'tcp'
  internal_port = 8081
  auto_stop_machines = 'stop'
  ports = [{ port = 80, handlers = ['http'] }]
[[services]]
  protocol = 'tcp'
  internal_port = 8081
  auto_stop_machines = 'stop'
  ports = [{ port = 5432 }]
[[services]]
  protocol = 'udp'
  internal_port = 9999
  auto_stop_machines = 'stop'
  ports = [{ port = 5300 }]
";

/// Takes every offer, and sends back what comes then.
const SOCKETS: &str = "exec busybox nc -ll -p 8081 -e /bin/busybox sh -c 'while read -r line && \
                       [ ${#line} -gt 1 ]; do :; done; printf \"HTTP/1.1 101 Switching \
                       Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n\"; exec cat'";

#[test]
fn who_keeps_an_app_awake_is_told_by_request_connection_and_session() {
    on_host(|host| {
        let image = hello_image(host)?;
        let web = one_machine_of(host, "web", &image, AWAKE)?;
        let address = one_machine_of(host, "live", &image, ALL_KINDS)?;
        let slow = ask(host, &address, "GET /sleep?ms=60000 HTTP/1.1\r\nHost: a\r\n\r\n")?;
        until(host, "live", "the request", |why| why["callers"][0]["what"] == "request")?;
        let raw = connect(host, &address, 5432)?;
        until(host, "live", "the connection", |why| why["machines"][0]["load"] == 2)?;
        let datagrams = host.inside(|| {
            let socket = UdpSocket::bind("[::]:0")?;
            socket.connect(at(&address, 5300)?)?;
            socket.send(b"hello")?;
            Ok(socket)
        })?;
        let used = until(host, "live", "all three", |why| why["machines"][0]["load"] == 3)?;
        let callers = used["callers"].as_array().context("no callers")?;
        let what: Vec<_> = callers.iter().map(|caller| &caller["what"]).collect();
        ensure!(what == ["request", "connection", "session"], "{used}");
        let trigger = &callers[0]["trigger"];
        ensure!(trigger["kind"] == "host" && trigger["method"] == "GET", "{used}");
        ensure!(trigger["path"] == "/sleep", "the query is told, or no path: {used}");
        ensure!(trigger["port"] == slow.local_addr()?.port(), "{used}");
        ensure!(used["machines"][0]["sleeps_in_ms"].is_null(), "{used}");
        host.fly(&["why", "live"])?.says(&[
            " is started since ",
            "  in use by 3 requests, connections or sessions",
            "callers of live now, longest first:",
            &format!("  the host with GET /sleep at [{address}]:80 for "),
            &format!("  the host at [{address}]:5432 (raw TCP) for "),
            &format!("  the host at [{address}]:5300 (UDP) for "),
        ])?;
        let one = host.fly(&["why", "live", "-n", "1"])?.ok()?;
        ensure!(one.contains("  and 2 more") && !one.contains("(UDP)"), "no bound: {one}");

        // Else its silence may be over before that is seen.
        datagrams.send(b"again")?;
        drop((slow, raw));
        let left = until(host, "live", "the others to go", |why| why["machines"][0]["load"] == 1)?;
        ensure!(left["callers"][0]["what"] == "session", "{left}");
        drop(datagrams);

        // Another app's Machine is called by its name.
        let target = "/fetch?url=http://live.flycast/sleep?ms=60000";
        let _calling = ask(host, &web, &format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"))?;
        let machine = host.machines("web")?.pop().context("no Machine")?.id;
        let called = until(host, "live", "the Machine of web", |why| {
            why["callers"].as_array().is_some_and(|all| {
                all.iter().any(|caller| caller["trigger"]["machine"] == machine.as_str())
            })
        })?;
        ensure!(called["callers"].to_string().contains("\"app\":\"web\""), "{called}");
        host.fly(&["why", "live"])?
            .says(&[&format!("app web, Machine {machine} with GET /sleep at ")])
    });
}

#[test]
fn a_websocket_is_told_as_what_it_was_asked_as_and_rests_when_it_is_silent() {
    on_host(|host| {
        let image = shell_image(host, "sockets", SOCKETS)?;
        let address = one_machine_of(host, "sockets", &image, SUSPENDS)?;
        let ask_for = "GET /chat?token=x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
                       Upgrade: websocket\r\n\r\n";
        let mut socket = ask(host, &address, ask_for)?;
        socket.set_read_timeout(Some(SOON))?;
        let mut head = [0; 12];
        socket.read_exact(&mut head)?;
        ensure!(&head == b"HTTP/1.1 101", "{:?}", String::from_utf8_lossy(&head));
        let open = until(host, "sockets", "it", |why| why["callers"][0]["what"] == "upgraded")?;
        ensure!(open["callers"][0]["trigger"]["path"] == "/chat", "{open}");
        host.wait_all("sockets", "suspended", SOON)?;
        let said = host.fly(&["why", "sockets"])?.ok()?;
        let line = format!(
            "  the host with GET /chat at [{address}]:80 (changed to another protocol) for "
        );
        ensure!(said.contains(&line) && said.contains(", at rest"), "{said}");
        Ok(())
    });
}

#[test]
fn one_that_nobody_uses_says_in_how_long_it_sleeps_and_by_which_clock() {
    on_host(|host| {
        let image = hello_image(host)?;
        let sections = format!("{SUSPENDS}  auto_stop_after = '10m'\n");
        let address = one_machine_of(host, "quotes", &image, &sections)?;
        check_answer(&host.get(&address, 80, "/")?, "Request 1.")?;
        let why = until(host, "quotes", "it to be unused", |why| why["machines"][0]["load"] == 0)?;
        let machine = &why["machines"][0];
        let left = machine["sleeps_in_ms"].as_u64().context("it does not sleep")?;
        let unused = machine["unused_ms"].as_u64().context("somebody uses it")?;
        ensure!(left + unused <= 600_000 && 599_000 <= left + unused, "{machine}");
        ensure!(machine["sleeps_by"] == "suspend" && why["callers"] == json!([]), "{why}");
        host.fly(&["why", "quotes"])?
            .says(&["  asleep (suspended) in 9 m ", ": nobody has used it for "])
    });
}

#[test]
fn what_forbids_a_sleep_that_is_due_is_told_and_written_down() {
    on_host(|host| {
        let image = hello_image(host)?;
        let floor = SNIPPET.replace("min_machines_running = 0", "min_machines_running = 1");
        one_machine_of(host, "kept", &image, &floor)?;
        let address = one_machine_of(host, "leased", &image, SNIPPET)?;
        let id = host.machines("leased")?.pop().context("no Machine")?.id;
        lease(host, "leased", &id)?;
        // Whether it slept before or not.
        check_answer(&host.get(&address, 80, "/")?, "Request")?;
        let veto = |app: &str| {
            wait_until(&format!("a veto of {app}"), SOON, || {
                let page = host.api(&format!("/perch/v1/why/events?app={app}&limit=1000"))?;
                let events = page["events"].as_array().context("no events")?.iter();
                Ok(events.rev().find(|event| event["kind"] == "veto").cloned())
            })
        };
        let reason = veto("kept")?["reason"].to_string();
        ensure!(reason.contains("min_machines_running = 1, and 1 run"), "{reason}");
        host.fly(&["why", "kept"])?.says(&[
            "  nobody has used it for ",
            "  kept awake: min_machines_running = 1, and 1 run in its region",
            "  a sleep was due ",
        ])?;
        let why = until(host, "leased", "its lease", |why| {
            why["machines"][0]["reasons"][0]["kind"] == "lease"
        })?;
        let text = why["machines"][0]["reasons"][0]["text"].to_string();
        ensure!(text.contains("has its lease until ") && text.contains("a rest"), "{text}");
        let reason = veto("leased")?["reason"].to_string();
        ensure!(reason.contains("has its lease until "), "{reason}");
        Ok(())
    });
}

/// The API's answer as soon as it is so.
pub(crate) fn until(
    host: &Host,
    app: &str,
    what: &str,
    is_so: impl Fn(&Value) -> bool,
) -> Result<Value> {
    wait_until(&format!("{what} in why {app} is awake"), SOON, || {
        let why = host.api(&format!("/perch/v1/apps/{app}/why"))?;
        Ok(is_so(&why).then_some(why))
    })
}

fn at(address: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse()?, port))
}

fn connect(host: &Host, address: &str, port: u16) -> Result<TcpStream> {
    let target = at(address, port)?;
    host.inside(|| Ok(TcpStream::connect_timeout(&target, SOON)?))
}

/// A request whose answer nobody reads.
pub(crate) fn ask(host: &Host, address: &str, request: &str) -> Result<TcpStream> {
    let mut stream = connect(host, address, 80)?;
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

fn lease(host: &Host, app: &str, id: &str) -> Result<()> {
    let body = json!({"ttl": 600, "description": "a rest"}).to_string();
    let path = format!("/v1/apps/{app}/machines/{id}/lease");
    let leased = host.request("POST", &path, "application/json", body.as_bytes())?;
    ensure!(leased.status == 201, "{leased:?}");
    Ok(())
}
