//! `fly logs`: history, following, and readers that do not read.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, wait_until};
use serde_json::Value;

use crate::stage::{on_host, shell_image};

/// Prints 100 MB of lines.
const PRINTER: &str = "yes 0123456789012345678901234567890123456789012345678901234567890123456789 \
                       | head -c 100000000";
/// Printing that much, on a box with other work.
const PRINTED: Duration = Duration::from_secs(60);
const READERS: u64 = 8;
/// What a reader that does not read may cost the server: a page as text and as JSON.
const READER_BYTES_MAX: u64 = 16 << 20;

fn page(host: &Host, token: &str) -> Result<(Vec<Value>, String)> {
    let page = host.api(&format!("/api/v1/apps/web/logs?next_token={token}&hold_ms=0"))?;
    let lines = page["data"].as_array().context("no lines")?;
    let lines = lines.iter().map(|line| line["attributes"].clone()).collect();
    Ok((lines, page["meta"]["next_token"].as_str().context("no token")?.to_owned()))
}

/// Makes a Machine that prints and does not run yet.
fn printer(host: &Host, app: &str) -> Result<String> {
    host.fly(&["apps", "create", app])?.ok()?;
    let image = shell_image(host, "printer", PRINTER)?;
    let said = host.fly(&["machine", "create", &image, "-a", app, "--restart", "no"])?.ok()?;
    let id = said.lines().find_map(|line| line.strip_prefix(" Machine ID: "));
    Ok(id.context("no ID is told")?.to_owned())
}

/// How long the Machine's run took, once it is over.
fn run_time(host: &Host, app: &str, id: &str) -> Result<Duration> {
    wait_until(&format!("{app} to have printed all"), PRINTED, || {
        let machine = host.api(&format!("/v1/apps/{app}/machines/{id}"))?;
        let events = machine["events"].as_array().context("no events")?;
        let time = |kind: &str| {
            let event = events.iter().find(|event| event["type"] == kind);
            event.and_then(|event| event["timestamp"].as_u64())
        };
        let (start, exit) = (time("start"), time("exit"));
        Ok(exit.zip(start).map(|(exit, start)| Duration::from_millis(exit - start)))
    })
}

fn resident(host: &Host) -> Result<u64> {
    let pid = host.server_process()?.pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kb = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = kb.and_then(|text| text.split_whitespace().next());
    Ok(kb.context("no VmRSS")?.parse::<u64>()? * 1024)
}

fn log_file(host: &Host, id: &str, name: &str) -> PathBuf {
    host.data_dir().join("machines").join(id).join(name)
}

#[test]
fn a_reader_that_stops_reading_costs_the_machine_nothing_and_is_told_what_it_missed() {
    on_host(|host| {
        let (id, other) = (printer(host, "web")?, printer(host, "quiet")?);
        for (app, id) in [("web", &id), ("quiet", &other)] {
            host.fly(&["machine", "start", id, "-a", app])?.ok()?;
        }
        // Readers in the middle of their reading, that ask for more and read nothing.
        let token = wait_until("its first lines", PRINTED, || {
            let (lines, token) = page(host, "")?;
            let is_app = |line: &Value| line["meta"]["event"]["provider"] == "app";
            Ok(lines.iter().any(is_app).then_some(token))
        })?;
        let mut readers = Vec::new();
        let before = resident(host)?;
        for _ in 0..READERS {
            let mut stream = UnixStream::connect(host.socket())?;
            let path = format!("/api/v1/apps/web/logs?next_token={token}&hold_ms=30000");
            write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            readers.push(stream);
        }
        let (watched, alone) = (run_time(host, "web", &id)?, run_time(host, "quiet", &other)?);
        let grown = resident(host)?.saturating_sub(before);
        println!(
            "100 MB: {watched:?} beside {READERS} stalled readers, {alone:?} beside none; {grown} bytes more"
        );
        ensure!(watched < alone.mul_f64(1.3), "slowed: {watched:?}, {alone:?} without readers");
        ensure!(grown < READERS * READER_BYTES_MAX, "{READERS} stalled readers cost {grown} bytes");
        // What it was before is gone by now.
        host.fly(&["machine", "start", &id, "-a", "web"])?.ok()?;
        wait_until("two files of its log to be gone", PRINTED, || {
            let head = std::fs::read_to_string(log_file(host, &id, "log.1")).unwrap_or_default();
            let base = head.lines().next().and_then(|line| line.split(" rotated ").nth(1));
            let base: Option<u64> = base.and_then(|text| text.parse().ok());
            Ok(base.is_some_and(|base| (9 << 20) < base).then_some(()))
        })?;

        let mut answer = Vec::new();
        readers.remove(0).read_to_end(&mut answer)?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "the reader was forgotten");
        let (lines, _) = page(host, &token)?;
        let told = lines.iter().find(|line| line["meta"]["event"]["provider"] == "runner");
        let told = told.context("nobody tells what is missing")?["message"].to_string();
        ensure!(told.contains(" MB of the log are missing here"), "{told}");
        let files =
            ["log", "log.1"].map(|name| host.data_dir().join("machines").join(&id).join(name));
        let kept: u64 =
            files.iter().filter_map(|file| file.metadata().ok()).map(|it| it.len()).sum();
        ensure!(kept <= (16 << 20) + 4096, "the log takes {kept} bytes");
        let shown = host.fly(&["logs", "-a", "web", "--no-tail", "--machine", &id])?.ok()?;
        ensure!(1_000 < shown.lines().count() && shown.len() < 24 << 20, "{} bytes", shown.len());
        Ok(())
    });
}
