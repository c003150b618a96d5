//! Spans of wakes (`otlp_endpoint`), to a small collector.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network, wait_until};
use serde_json::Value;

use crate::in_place::release;
use crate::stage::{QUICK_SLEEP, SOON, check_answer, hello_image, on, one_machine_of};
use crate::suspend::SUSPENDS;
use crate::why::event;

/// In the host's own network.
const COLLECTOR: &str = "127.0.0.1:4318";

#[test]
fn a_collector_that_comes_late_gets_the_spans_of_wakes_and_its_absence_is_said_once() {
    let config = format!("{QUICK_SLEEP}otlp_endpoint = \"http://{COLLECTOR}\"\n");
    on(
        || Host::start_with(Network::Open, &config),
        |host| {
            let address = one_machine_of(host, "web", &hello_image(host)?, SUSPENDS)?;
            let complaints = || -> Result<usize> {
                let log = std::fs::read_to_string(host.server_log())?;
                Ok(log.matches("takes no spans").count())
            };
            wait_until("a complaint", SOON, || Ok((0 < complaints()?).then_some(())))?;
            let listener = host.inside(|| Ok(TcpListener::bind(COLLECTOR)?))?;
            host.wait_all("web", "suspended", SOON)?;
            check_answer(&host.get(&address, 80, "/")?, "Request 1.")?;
            check(&wait_of_a_caller(&listener)?)?;
            ensure!(complaints()? == 1, "said {} times", complaints()?);
            Ok(())
        },
    );
}

#[test]
fn what_no_collector_took_before_an_upgrade_is_told_after_it() {
    let config = format!("{QUICK_SLEEP}otlp_endpoint = \"http://{COLLECTOR}\"\n");
    on(
        || Host::start_with(Network::Open, &config),
        |host| {
            let address = one_machine_of(host, "web", &hello_image(host)?, SUSPENDS)?;
            host.wait_all("web", "suspended", SOON)?;
            check_answer(&host.get(&address, 80, "/")?, "Request 1.")?;
            event(host, "web", "hold", |_| true)?;
            let release = release(host, "release")?;
            host.upgrade(&release)?;
            let listener = host.inside(|| Ok(TcpListener::bind(COLLECTOR)?))?;
            check(&wait_of_a_caller(&listener)?)
        },
    );
}

/// Takes spans until there is such a one; with all that follow it.
fn wait_of_a_caller(listener: &TcpListener) -> Result<Vec<Value>> {
    loop {
        let body: Value = serde_json::from_str(&take(listener)?)?;
        let spans = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
        let spans = spans.as_array().context("no list of spans")?;
        if let Some(at) = spans.iter().position(|span| span["name"] == "hold") {
            return Ok(spans[at..].to_vec());
        }
    }
}

/// The body of one request, which is answered.
fn take(listener: &TcpListener) -> Result<String> {
    listener.set_nonblocking(true)?;
    let mut stream = wait_until("spans", SOON, || match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    })?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (mut all, mut buffer) = (String::new(), [0; 65536]);
    loop {
        if let Some((head, body)) = all.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            if length.context("no length")?.parse::<usize>()? <= body.len() {
                ensure!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
                // Who waited too long for this says it again.
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"));
                return Ok(body.to_owned());
            }
        }
        let length = stream.read(&mut buffer)?;
        ensure!(length != 0, "it ends early: {all}");
        all.push_str(std::str::from_utf8(&buffer[..length])?);
    }
}

/// A caller's wait, and behind it its phases, which add up to it.
fn check(spans: &[Value]) -> Result<()> {
    let [root, rest @ ..] = spans else { anyhow::bail!("no span") };
    let text = |key: &str| {
        let attributes = root["attributes"].as_array().into_iter().flatten();
        let found = attributes.filter(|it| it["key"] == *key);
        found.filter_map(|it| it["value"]["stringValue"].as_str()).next().unwrap_or_default()
    };
    for (key, value) in [("perch.app", "web"), ("perch.how", "thaw"), ("url.path", "/")] {
        ensure!(text(key) == value, "{key}: {root}");
    }
    let micros = |span: &Value| -> Result<u64> {
        let at = |key: &str| -> Result<u64> { Ok(span[key].as_str().context("no time")?.parse()?) };
        Ok(at("endTimeUnixNano")? - at("startTimeUnixNano")?)
    };
    let phases: Vec<_> = rest.iter().filter(|it| it["parentSpanId"] == root["spanId"]).collect();
    let sum: u64 = phases.iter().map(|span| micros(span)).sum::<Result<u64>>()?;
    ensure!(!phases.is_empty() && sum == micros(root)? && 0 < sum, "{spans:?}");
    Ok(())
}
