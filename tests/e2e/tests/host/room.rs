//! Starts that do not fit into memory while nobody sleeps who could give way: they wait, and are then refused or begin.

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network, Response};

use crate::limits::only;
use crate::stage::{check_answer, hello_image, on, one_machine_of};

/// One program of `BIG_MB` is more than the server may count on.
const SMALL: &str = "memory = \"128MiB\"\narmed_max = 0\n";
const BIG_MB: u64 = 130;
/// How a start is refused.
const WORD: &str = "insufficient_capacity";

#[test]
fn a_start_that_does_not_fit_waits_for_room_and_is_refused_without() {
    on(small, |host| {
        deploy(host, "brief", "start_timeout = '2s'\n", "")?;
        deploy(host, "patient", "", "")?;
        for app in ["brief", "patient"] {
            let machine = only(host, app)?.id;
            host.fly(&["machine", "stop", &machine, "-a", app, "-w", "20s"])?.ok()?;
        }
        let held = format!("[env]\n  HOLD_MB = '{BIG_MB}'\n\n");
        deploy(host, "big", "", &held)?;
        check_answer(&host.get(&host.flycast("big")?, 80, "/held")?, "130 MB")?;
        let refused = host.get(&host.flycast("brief")?, 80, "/")?;
        ensure!(refused.header("retry-after").is_some(), "no Retry-After: {refused:?}");
        check_refused(&refused)?;
        check_refused(&start(host, "brief")?)?;
        let said = host.machines("brief")?.pop().context("no Machine")?.value["events"].to_string();
        ensure!(said.contains("memory is short"), "its events do not say why: {said}");
        // Whoever has what it needs feels nothing of it.
        check_answer(&host.get(&host.flycast("big")?, 80, "/")?, "Hello")?;
        check_room_made(host)
    });
}

/// Both ask before there is room.
fn check_room_made(host: &Host) -> Result<()> {
    let (address, big) = (host.flycast("patient")?, only(host, "big")?.id);
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| host.get(&address, 80, "/"));
        let starter = scope.spawn(|| start(host, "patient"));
        host.fly(&["machine", "stop", &big, "-a", "big", "-w", "20s"])?.ok()?;
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Response>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        let started = join(starter)?;
        ensure!(started.status == 200, "the start was refused: {started:?}");
        check_answer(&join(caller)?, "Hello")
    })
}

fn check_refused(answer: &Response) -> Result<()> {
    ensure!(answer.status == 503, "{answer:?}");
    ensure!(answer.body.contains(WORD), "not by its word: {answer:?}");
    ensure!(answer.body.contains("memory is short"), "not why: {answer:?}");
    Ok(())
}

fn start(host: &Host, app: &str) -> Result<Response> {
    let path = format!("/v1/apps/{app}/machines/{}/start", only(host, app)?.id);
    host.request("POST", &path, "application/json", b"{}")
}

fn deploy(host: &Host, app: &str, service: &str, sections: &str) -> Result<()> {
    let service = format!(
        "{sections}[http_service]\n  internal_port = 8081\n  force_https = false\n  auto_start_machines = true\n  \
         auto_stop_machines = 'off'\n  {service}"
    );
    one_machine_of(host, app, &hello_image(host)?, &service).map(drop)
}

fn small() -> Result<Host> {
    Host::start_with(Network::Open, SMALL)
}
