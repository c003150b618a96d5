//! `[[perch.allow]]`: which apps may call another one, and which may wake it.

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, wait_until};
use serde_json::Value;

use crate::stage::{
    AWAKE, SNIPPET, SOON, check_answer, fly_toml, hello_image, on_host, one_machine_of,
    run_in_machine, wait_asleep,
};

const RULES: &str = "
[[perch.allow]]
  service = 'http_service'
  from = ['app:web']
  paths = ['/inside', '/headers']
[[perch.allow]]
  from = ['app:web']
  methods = ['GET']
  then = 'serve-if-awake'
";

/// The newest event of this kind that is so.
fn event(host: &Host, kind: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_until(&format!("the {kind} is told"), SOON, || {
        let page = host.api("/perch/v1/why/events?app=quotes&limit=1000")?;
        let events = page["events"].as_array().context("no events")?;
        let mut meant = events.iter().rev().filter(|it| it["kind"] == kind && is_so(it));
        Ok(meant.next().cloned())
    })
}

#[test]
fn who_is_refused_wakes_nothing_and_the_ledger_says_so() {
    on_host(|host| {
        let image = hello_image(host)?;
        let web = one_machine_of(host, "web", &image, AWAKE)?;
        let evil = one_machine_of(host, "evil", &image, AWAKE)?;
        let address = one_machine_of(host, "quotes", &image, &format!("{SNIPPET}{RULES}"))?;
        wait_asleep(host, "quotes")?;
        let url = "http://quotes.flycast/inside";

        let refused = host.fetch(&evil, url)?;
        ensure!(refused.body.contains("status: 403"), "{refused:?}");
        ensure!(refused.body.contains("refuse this call of app evil: no rule fits"), "{refused:?}");
        let evil_id = host.machines("evil")?.pop().context("no Machine")?.id;
        let told = event(host, "refusal", |it| it["trigger"]["app"] == "evil")?;
        ensure!(
            told["trigger"]["machine"] == evil_id && told["trigger"]["path"] == "/inside",
            "{told}"
        );
        ensure!(told["reason"].as_str().is_some_and(|why| why.contains("no rule fits")), "{told}");
        // Who lies about himself is who he is.
        let lie =
            ["curl", "-sS", "-m", "20", "-H", "Fly-Src: instance=x;app=web;org=personal;ts=1"];
        let call = [&lie[..], &["-o", "/dev/null", "-w", "%{http_code}"]].concat();
        let url_of = format!("http://[{address}]/inside");
        let lied = run_in_machine(host, &evil_id, &[&call[..], &[&url_of]].concat())?.ok()?;
        ensure!(lied == "403", "{lied}");
        ensure!(host.get(&address, 80, "/inside")?.status == 403, "the host is let in");
        let asleep = host.fetch(&web, "http://quotes.flycast/")?;
        ensure!(asleep.body.contains("status: 503"), "{asleep:?}");
        ensure!(host.machines("quotes")?[0].state == "stopped", "somebody has woken it");

        let woken = host.fetch(&web, url)?;
        ensure!(woken.body.contains("status: 404"), "{woken:?}");
        let held = event(host, "hold", |_| true)?;
        ensure!(held["trigger"]["app"] == "web", "{held}");
        check_answer(&host.fetch(&web, "http://quotes.flycast/")?, "Hello")
    });
}

#[test]
fn a_rule_that_cannot_be_meant_is_refused_with_its_line_and_nothing_is_deployed() {
    on_host(|host| {
        let image = hello_image(host)?;
        let sections = format!("{SNIPPET}\n[[perch.allow]]\n  from = ['web']\n");
        let text = fly_toml("quotes", &image, &sections);
        let line = 1 + text.lines().position(|line| line.contains("['web']")).context("no line")?;
        let dir = host.app_dir("quotes", &text)?;
        host.fly(&["apps", "create", "quotes"])?.ok()?;
        let ran = host.fly_in(&dir, &["deploy"])?;
        let refused = ran.to_string();
        ran.fails()?;
        for part in [&*format!("fly.toml:{line}"), "perch.allow[0].from", "app:NAME"] {
            ensure!(refused.contains(part), "{refused} lacks {part}");
        }
        ensure!(host.machines("quotes")?.is_empty(), "something was deployed");
        Ok(())
    });
}
