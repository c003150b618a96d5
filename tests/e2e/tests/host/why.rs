//! Why Machines are awake or asleep: the ledger and who asks for it.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Host, Response, wait_until};
use serde_json::Value;

use crate::stage::{AWAKE, SNIPPET, SOON, check_answer, hello_image, on_host, one_machine_of};
use crate::suspend::SUSPENDS;

#[test]
fn a_wake_is_told_with_its_caller_its_depth_and_phases_that_add_up() {
    on_host(|host| {
        let image = hello_image(host)?;
        let address = one_machine_of(host, "quotes", &image, SUSPENDS)?;
        host.wait_all("quotes", "suspended", SOON)?;
        let begun = Instant::now();
        let woken = host.get(&address, 80, "/?secret=1")?;
        let measured = begun.elapsed();
        check_answer(&woken, "Request 1.")?;
        let held = event(host, "quotes", "hold", |_| true)?;
        check_wait(&held, &woken, measured)?;
        ensure!(held["from"] == "suspended" && held["first"] == true, "{held}");
        let trigger = &held["trigger"];
        ensure!(trigger["kind"] == "host" && trigger["path"] == "/", "{held}");
        ensure!(trigger["method"] == "GET" && trigger["port"] != 0, "{held}");
        ensure!(trigger["destination"] == format!("[{address}]:80"), "{held}");
        let wake = event(host, "quotes", "wake", |wake| wake["how"] == "thaw")?;
        ensure!(wake["from"] == "suspended" && wake["trigger"]["kind"] == "host", "{wake}");
        ensure!(wake["run"] == held["run"] && wake["machine"] == held["machine"], "{wake}");
        host.wait_all("quotes", "suspended", SOON)?;
        let suspend = event(host, "quotes", "suspend", |it| is_after(it, &held))?;
        ensure!(suspend["trigger"]["kind"] == "proxy", "{suspend}");
        ensure!(suspend["reason"].as_str().is_some_and(|why| !why.is_empty()), "{suspend}");
        Ok(())
    });
}

#[test]
fn a_wake_by_another_apps_machine_and_one_by_an_operator_are_told_apart() {
    on_host(|host| {
        let image = hello_image(host)?;
        let caller = one_machine_of(host, "web", &image, AWAKE)?;
        let address = one_machine_of(host, "quotes", &image, SNIPPET)?;
        host.wait_all("quotes", "stopped", SOON)?;
        check_answer(&host.fetch(&caller, "http://quotes.flycast/inside")?, "")?;
        let held = event(host, "quotes", "hold", |it| it["how"] == "start")?;
        let web = host.machines("web")?.pop().context("no Machine")?.id;
        let trigger = &held["trigger"];
        ensure!(trigger["kind"] == "machine" && trigger["app"] == "web", "{held}");
        ensure!(trigger["machine"] == web && trigger["path"] == "/inside", "{held}");
        ensure!(matches!(held["from"].as_str(), Some("stopped" | "armed")), "{held}");
        let wake = event(host, "quotes", "wake", |it| it["trigger"]["machine"] == web)?;
        check_sum(&wake)?;
        host.wait_all("quotes", "stopped", SOON)?;

        let id = host.machines("quotes")?.pop().context("no Machine")?.id;
        host.fly(&["machine", "start", &id])?.ok()?;
        let wake = event(host, "quotes", "wake", |it| is_after(it, &wake))?;
        let trigger = &wake["trigger"];
        ensure!(trigger["kind"] == "operator" && trigger["who"] == "uid 0", "{wake}");
        host.fly(&["machine", "stop", &id, "-w", "30s"])?.ok()?;
        let stop = event(host, "quotes", "stop", |it| is_after(it, &wake))?;
        ensure!(stop["trigger"]["who"] == "uid 0", "{stop}");
        check_answer(&host.get(&address, 80, "/")?, "Request 1.")
    });
}

#[test]
fn the_ledger_survives_what_kills_server_and_proxy() {
    on_host(|host| {
        let image = hello_image(host)?;
        let address = one_machine_of(host, "quotes", &image, SUSPENDS)?;
        host.wait_all("quotes", "suspended", SOON)?;
        ensure!(host.get(&address, 80, "/one")?.status == 404, "not answered by it");
        let held = event(host, "quotes", "hold", |it| it["trigger"]["path"] == "/one")?;
        await_written(host, &held)?;
        host.wait_all("quotes", "suspended", SOON)?;
        host.kill_server()?;
        // The proxy keeps what it has to tell.
        ensure!(host.get(&address, 80, "/two")?.status == 404, "not answered by it");
        let path = host.data_dir().join("ledger.jsonl");
        let mut file = std::fs::File::options().append(true).open(path)?;
        file.write_all(b"{\"id\":1,\"app\":\"quo")?;
        host.start_server()?;
        let again = event(host, "quotes", "hold", |it| it["trigger"]["path"] == "/one")?;
        ensure!(again == held, "{again} is not {held}");
        let second = event(host, "quotes", "hold", |it| it["trigger"]["path"] == "/two")?;
        ensure!(second["id"].as_u64() > held["id"].as_u64(), "{second} is not after {held}");
        await_written(host, &second)?;
        host.wait_all("quotes", "suspended", SOON)?;

        host.kill_proxy()?;
        ensure!(host.get(&address, 80, "/three")?.status == 404, "not answered by it");
        let third = event(host, "quotes", "hold", |it| it["trigger"]["path"] == "/three")?;
        check_sum(&third)?;
        await_written(host, &third)?;
        host.kill_server()?;
        host.start_server()?;
        for path in ["/one", "/two", "/three"] {
            event(host, "quotes", "hold", |it| it["trigger"]["path"] == path)?;
        }
        Ok(())
    });
}

#[test]
fn fly_why_says_it_in_words_and_follows_what_comes() {
    on_host(|host| {
        let image = hello_image(host)?;
        let address = one_machine_of(host, "quotes", &image, SUSPENDS)?;
        host.wait_all("quotes", "suspended", SOON)?;
        let dir = host.dir().to_owned();
        let mut follow = host.fly_command(&dir, &["why", "quotes", "-e", "-f", "-j"]);
        let mut follow = follow.stdout(Stdio::piped()).spawn()?;
        let seen = BufReader::new(follow.stdout.take().context("no output")?);
        check_answer(&host.get(&address, 80, "/")?, "Request 1.")?;
        let held = event(host, "quotes", "hold", |it| it["first"] == true)?;
        let follows = || -> Result<()> {
            for line in seen.lines() {
                let told: Value = serde_json::from_str(&line?)?;
                if told == held {
                    return Ok(());
                }
            }
            bail!("{held} is not told")
        };
        let followed = follows();
        follow.kill()?;
        follow.wait()?;
        followed?;
        host.wait_all("quotes", "suspended", SOON)?;
        event(host, "quotes", "suspend", |it| is_after(it, &held))?;
        host.fly(&["why", "quotes"])?.says(&[
            "quotes ",
            " is suspended since ",
            ": no load for 1.",
            "last woken ",
            " from suspended by the host with GET / at ",
            "its first caller waited ",
        ])?;
        host.fly(&["why", "-a", "quotes", "--events", "-n", "1000"])?
            .says(&[" hold ", "answer "])?;
        let refused = host.fly(&["why", "nobody"])?.fails()?;
        ensure!(refused.contains("nobody"), "{refused}");
        host.fly(&["why"])?.says(&["quotes "])
    });
}

/// The newest such record of an app, when there is one.
pub(crate) fn event(
    host: &Host,
    app: &str,
    kind: &str,
    is_it: impl Fn(&Value) -> bool,
) -> Result<Value> {
    wait_until(&format!("a {kind} of {app} in the ledger"), SOON, || {
        let page = host.api(&format!("/perch/v1/why/events?app={app}&limit=1000"))?;
        let events = page["events"].as_array().context("no events")?.iter().rev();
        let mut meant = events.filter(|event| event["kind"] == kind && is_it(event));
        Ok(meant.next().cloned())
    })
}

/// The phases add up to the proxy's own total, and the caller has waited no shorter than that, nor than the header says.
fn check_wait(held: &Value, answer: &Response, measured: Duration) -> Result<()> {
    let total = check_sum(held)?;
    ensure!(total <= measured, "{total:?} are more than the caller measured: {measured:?}");
    let header = answer.header("perch-wake").context("no Perch-Wake")?;
    let millis: f64 = header.rsplit('=').next().unwrap_or_default().parse().context("a number")?;
    ensure!(millis <= total.as_secs_f64() * 1000.0 + 0.01, "{header} is more than {total:?}");
    Ok(())
}

fn check_sum(event: &Value) -> Result<Duration> {
    let total = event["total_micros"].as_u64().context("no total")?;
    let phases = event["phases"].as_array().context("no phases")?;
    let sum: u64 = phases.iter().filter_map(|phase| phase["micros"].as_u64()).sum();
    ensure!(0 < total && sum == total, "the phases do not add up: {event}");
    Ok(Duration::from_micros(total))
}

/// Until then only the server knows it.
fn await_written(host: &Host, event: &Value) -> Result<()> {
    let path = host.data_dir().join("ledger.jsonl");
    let mark = format!("{{\"id\":{},", event["id"]);
    wait_until("the record to be on disk", SOON, || {
        let text = std::fs::read_to_string(&path)?;
        Ok(text.lines().any(|line| line.starts_with(&mark)).then_some(()))
    })
}

fn is_after(event: &Value, other: &Value) -> bool {
    other["id"].as_u64() < event["id"].as_u64()
}
