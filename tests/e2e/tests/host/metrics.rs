//! `GET /metrics`, read by Prometheus' own parser for Python.

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, wait_until};
use serde_json::Value;

use crate::stage::{SNIPPET, SOON, check_answer, hello_image, on_host, one_machine_of};
use crate::suspend::SUSPENDS;

/// Prints all samples as lists of name, labels and value.
const READ: &str = "\
import json, sys
from prometheus_client.parser import text_string_to_metric_families as families
samples = []
for family in families(open(sys.argv[1]).read()):
    assert family.documentation, family.name
    for sample in family.samples:
        samples.append([sample.name, sample.labels, sample.value])
print(json.dumps(samples))
";

struct Metrics(Vec<(String, Value, f64)>);

impl Metrics {
    fn read(host: &Host, path: &str) -> Result<Self> {
        let answer = host.request("GET", path, "text/plain", b"")?;
        ensure!(answer.status == 200, "{answer:?}");
        let file = host.dir().join("metrics.txt");
        std::fs::write(&file, &answer.body)?;
        let said =
            host.run("/usr/bin/python3", &["-c", READ, &file.display().to_string()])?.ok()?;
        Ok(Self(serde_json::from_str(&said).context("not what was printed")?))
    }

    /// Of all samples of this name with these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |own: &Value| labels.iter().all(|(name, value)| own[*name] == **value);
        // The parser calls every counter so, also Fly's that are not.
        let is_it = |own: &str| own.strip_suffix("_total").unwrap_or(own) == name || own == name;
        let meant = self.0.iter().filter(|(own, values, _)| is_it(own) && has(values));
        meant.map(|(_, _, value)| value).sum()
    }
}

#[test]
fn a_wake_and_its_answer_change_the_metrics_and_prometheus_reads_them() {
    const APP: (&str, &str) = ("app", "quotes");
    const FROM: (&str, &str) = ("from", "suspended");
    on_host(|host| {
        let image = hello_image(host)?;
        let address = one_machine_of(host, "quotes", &image, SUSPENDS)?;
        host.wait_all("quotes", "suspended", SOON)?;
        let before = Metrics::read(host, "/metrics")?;
        ensure!(before.sum("perch_proxy_up", &[]) == 1.0, "the proxy tells nothing");
        ensure!(before.sum("fly_instance_up", &[APP]) == 0.0, "it is asleep");
        check_answer(&host.get(&address, 80, "/")?, "Request 1.")?;
        let refused = host.get(&address, 80, "/nothing")?;
        ensure!(refused.status == 404, "{refused:?}");
        let after = wait_until("the wake in the metrics", SOON, || {
            let after = Metrics::read(host, "/metrics")?;
            let is_told = before.sum("autostart_wakes_total", &[APP, FROM])
                < after.sum("autostart_wakes_total", &[APP, FROM])
                && 1.0 <= after.sum("autostart_wake_seconds_count", &[FROM]);
            Ok(is_told.then_some(after))
        })?;
        let more = |name: &str, labels: &[(&str, &str)]| {
            after.sum(name, labels) - before.sum(name, labels)
        };
        for name in ["fly_app_http_responses_count", "fly_edge_http_responses_count"] {
            ensure!(more(name, &[APP, ("status", "2xx")]) == 1.0, "{name}");
            ensure!(more(name, &[APP, ("status", "4xx")]) == 1.0, "{name}");
        }
        ensure!(more("fly_edge_tcp_connects_count", &[APP]) == 2.0, "connections");
        let (whole, parts) = ("autostart_wake_seconds_sum", "autostart_phase_seconds_sum");
        let (whole, parts) = (after.sum(whole, &[FROM]), after.sum(parts, &[FROM]));
        ensure!((whole - parts).abs() < 0.000_01, "phases of {parts} s in {whole} s");
        let all = after.sum("autostart_wake_seconds_bucket", &[FROM, ("le", "+Inf")]);
        ensure!(all == after.sum("autostart_wake_seconds_count", &[FROM]), "the last part");
        host.wait_all("quotes", "suspended", SOON)?;
        let slept = [APP, ("how", "suspend")];
        wait_until("its sleep in the metrics", SOON, || {
            let later = Metrics::read(host, "/metrics")?;
            let is_told = before.sum("autostop_sleeps_total", &slept)
                < later.sum("autostop_sleeps_total", &slept);
            Ok((is_told && later.sum("fly_instance_up", &[APP]) == 0.0).then_some(()))
        })
    });
}

#[test]
fn metrics_of_one_app_tell_nothing_of_another() {
    on_host(|host| {
        let image = hello_image(host)?;
        let address = one_machine_of(host, "mine", &image, SNIPPET)?;
        one_machine_of(host, "yours", &image, SNIPPET)?;
        check_answer(&host.get(&address, 80, "/")?, "Request")?;
        let own = Metrics::read(host, "/metrics?app=mine")?;
        ensure!(own.0.iter().any(|(_, labels, _)| labels["app"] == "mine"), "nothing");
        ensure!(own.0.iter().all(|(_, labels, _)| labels["app"] != "yours"), "another's");
        ensure!(1.0 <= own.sum("fly_app_http_responses_count", &[("status", "2xx")]), "its answer");
        let unknown = host.request("GET", "/metrics?app=nobody", "text/plain", b"")?;
        ensure!(unknown.status == 404, "{unknown:?}");
        Ok(())
    });
}
