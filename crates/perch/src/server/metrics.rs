//! `GET /metrics`: what Prometheus reads.
//!
//! Families with Fly's names as far as there is such data here (`fly_edge_*`, `fly_app_*`, `fly_instance_*`,
//! `fly_volume_*`), and ours: `autostart_*` and `autostop_*` out of the ledger. Series are as many as there are apps,
//! Machines and volumes, times a few; how long wakes take is told of all apps together.

mod tally;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use perch_api::wire::{ExitEvent, MachineState};
use perch_proxy::control::AppCounts;

use tally::OfApp;
pub(crate) use tally::Tally;
use text::{Kind, Text};

use super::world::World;

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Somebody who may see everything.
    OfAll,
    /// Somebody who may see some apps, and nothing that others have a part in.
    OfSome,
}

/// Writes all metrics, of these apps only if they are named.
pub(crate) async fn write(world: &World, apps: Option<&[String]>, reader: Reader) -> String {
    let counts = world.proxy.counts().await;
    // The lock is held for as long as the names take; the server's tasks wait for it.
    let there: BTreeSet<String> = world.keeper.read().apps.keys().cloned().collect();
    let is_meant = |app: &str| {
        apps.is_none_or(|apps| apps.iter().any(|named| named == app)) && there.contains(app)
    };
    let mut text = Text::default();
    text.family("perch_proxy_up", Kind::Gauge, "Whether the proxy has told its numbers.");
    text.sample("perch_proxy_up", &[], u64::from(counts.is_some()));
    let counts: Vec<_> = counts.into_iter().flatten().filter(|it| is_meant(&it.app)).collect();
    write_traffic(&mut text, &world.config.region, &counts);
    write_instances(&mut text, world, &is_meant);
    write_volumes(&mut text, world, &is_meant);
    let tally = {
        let mut tally = world.ledger.tally();
        tally.retain(|app| there.contains(app));
        tally.clone()
    };
    write_tally(&mut text, &tally, reader, &is_meant);
    text.into_string()
}

fn write_traffic(text: &mut Text, region: &str, counts: &[AppCounts]) {
    const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
    let each = |text: &mut Text, name: &str, of: &dyn Fn(&AppCounts) -> u64| {
        for own in counts {
            text.sample(name, &[("app", own.app.as_str()), ("region", region)], of(own));
        }
    };
    let by_class = |text: &mut Text, name: &str, of: &dyn Fn(&AppCounts, usize) -> u64| {
        for own in counts {
            for (class, label) in CLASSES.into_iter().enumerate() {
                let labels = [("app", own.app.as_str()), ("region", region), ("status", label)];
                text.sample(name, &labels, of(own, class));
            }
        }
    };
    text.family(
        "fly_app_concurrency",
        Kind::Gauge,
        "Requests, connections and sessions that Machines have now; what rests is none.",
    );
    each(text, "fly_app_concurrency", &|own| own.concurrency);
    let help = "Answers of Machines, by the class of their status, since the proxy began.";
    text.family("fly_app_http_responses_count", Kind::Counter, help);
    by_class(text, "fly_app_http_responses_count", &|own, class| own.answers[class]);
    let help = "Answers to callers, those of the proxy itself included, since it began.";
    text.family("fly_edge_http_responses_count", Kind::Counter, help);
    by_class(text, "fly_edge_http_responses_count", &|own, class| {
        own.answers[class] + own.own[class]
    });
    let help = "TCP connections of callers to addresses of the app alone, since the proxy began.";
    text.family("fly_edge_tcp_connects_count", Kind::Counter, help);
    each(text, "fly_edge_tcp_connects_count", &|own| own.connects);
    text.family("fly_edge_tcp_disconnects_count", Kind::Counter, "Those of them that have ended.");
    each(text, "fly_edge_tcp_disconnects_count", &|own| own.disconnects);
}

/// A Machine, as far as it is told here.
struct Instance {
    app: String,
    id: String,
    region: String,
    is_up: bool,
    exit: Option<ExitEvent>,
}

impl Instance {
    fn labels(&self) -> [(&str, &str); 3] {
        [("app", &self.app), ("instance", &self.id), ("region", &self.region)]
    }
}

fn write_instances(text: &mut Text, world: &World, is_meant: &dyn Fn(&str) -> bool) {
    let instances = instances(world, is_meant);
    text.family("fly_instance_up", Kind::Gauge, "Whether the Machine is started.");
    for it in &instances {
        text.sample("fly_instance_up", &it.labels(), u64::from(it.is_up));
    }
    let exits = || instances.iter().filter_map(|it| Some((it, it.exit.as_ref()?)));
    text.family("fly_instance_exit_code", Kind::Gauge, "Exit code of its last run that ended.");
    for (it, exit) in exits() {
        text.signed("fly_instance_exit_code", &it.labels(), exit.exit_code.into());
    }
    text.family("fly_instance_exit_oom", Kind::Gauge, "Whether that run was out of memory.");
    for (it, exit) in exits() {
        text.sample("fly_instance_exit_oom", &it.labels(), u64::from(exit.oom_killed));
    }
}

fn instances(world: &World, is_meant: &dyn Fn(&str) -> bool) -> Vec<Instance> {
    let meant: Vec<_> = {
        let catalog = world.keeper.read();
        let meant = catalog.machines.values().filter(|record| is_meant(&record.app));
        meant.map(|it| (it.app.clone(), it.id.clone(), it.region.clone())).collect()
    };
    let all = meant.into_iter().filter_map(|(app, id, region)| {
        let status = world.handle(&id)?.status();
        let (is_up, exit) =
            (status.state == MachineState::Started, status.history.last_exit().cloned());
        Some(Instance { app, id, region, is_up, exit })
    });
    all.collect()
}

fn write_volumes(text: &mut Text, world: &World, is_meant: &dyn Fn(&str) -> bool) {
    text.family("fly_volume_size_bytes", Kind::Gauge, "Size of the volume.");
    let volumes: Vec<_> = world.keeper.read().volumes.values().cloned().collect();
    for volume in volumes.iter().filter(|volume| is_meant(&volume.app)) {
        let labels = [
            ("app", volume.app.as_str()),
            ("id", volume.id.as_str()),
            ("name", volume.name.as_str()),
            ("region", volume.region.as_str()),
        ];
        text.sample("fly_volume_size_bytes", &labels, volume.size_gb << 30);
    }
}

fn write_tally(text: &mut Text, tally: &Tally, reader: Reader, is_meant: &dyn Fn(&str) -> bool) {
    let apps: Vec<_> = tally.apps.iter().filter(|(app, _)| is_meant(app)).collect();
    write_apps(text, &apps);
    if reader == Reader::OfSome {
        return;
    }
    let help =
        "How long callers waited for a Machine that slept so deep, as far as each was recorded.";
    text.family("autostart_wake_seconds", Kind::Histogram, help);
    for (depth, lengths) in &tally.wakes {
        text.histogram("autostart_wake_seconds", &[("from", depth.as_str())], lengths);
    }
    let help = "The parts of those waits: they add up to them.";
    text.family("autostart_phase_seconds", Kind::Histogram, help);
    for ((depth, phase), lengths) in &tally.phases {
        let labels = [("from", depth.as_str()), ("phase", phase.as_str())];
        text.histogram("autostart_phase_seconds", &labels, lengths);
    }
    let help = "Records that were left out of the ledger: there were too many at once.";
    text.family("perch_ledger_left_out_total", Kind::Counter, help);
    text.sample("perch_ledger_left_out_total", &[], tally.left_out);
    let help = "Records that the collector of spans does not have, and will not get.";
    text.family("perch_spans_lost_total", Kind::Counter, help);
    for (why, count) in [("overtaken", tally.overtaken), ("refused", tally.refused)] {
        text.sample("perch_spans_lost_total", &[("why", why)], count);
    }
}

/// One of the numbers of an app.
type Number = fn(&OfApp) -> u64;

fn write_apps(text: &mut Text, apps: &[(&String, &OfApp)]) {
    let help = "Machines that were woken for callers, by how deep they slept.";
    text.family("autostart_wakes_total", Kind::Counter, help);
    for (app, own) in apps {
        for (depth, count) in &own.wakes {
            let labels = [("app", app.as_str()), ("from", depth.as_str())];
            text.sample("autostart_wakes_total", &labels, *count);
        }
    }
    let simple: [(&str, &str, Number); 5] = [
        ("autostart_waits_total", "Callers who waited, as far as each was recorded.", |it| {
            it.waits
        }),
        ("autostart_refusals_total", "Callers who were sent away.", |it| it.refusals),
        ("autostart_failures_total", "Wakes that failed.", |it| it.failures),
        ("autostop_vetoes_total", "Sleeps that were due and did not happen.", |it| it.vetoes),
        ("autostop_page_outs_total", "Sleepers whose memory went to swap.", |it| it.page_outs),
    ];
    for (name, help, of) in simple {
        text.family(name, Kind::Counter, help);
        for (app, own) in apps {
            text.sample(name, &[("app", app.as_str())], of(own));
        }
    }
    let help = "Machines that the proxy put to sleep, by how.";
    text.family("autostop_sleeps_total", Kind::Counter, help);
    for (app, own) in apps {
        for (how, count) in BTreeMap::from([("stop", own.stops), ("suspend", own.suspends)]) {
            let labels = [("app", app.as_str()), ("how", how)];
            text.sample("autostop_sleeps_total", &labels, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use perch_api::wire::LedgerEvent;

    use super::*;

    #[test]
    fn who_may_see_one_app_is_told_nothing_of_all_together() {
        let mut tally = Tally::default();
        for app in ["own", "other"] {
            let (app, kind, from) = (app.to_owned(), "hold".to_owned(), "suspended".to_owned());
            let event = LedgerEvent { app, kind, from, total_micros: 300, ..Default::default() };
            tally.note(&event);
        }
        let told = |reader| {
            let mut text = Text::default();
            write_tally(&mut text, &tally, reader, &|app| app == "own");
            text.into_string()
        };
        let (all, some) = (told(Reader::OfAll), told(Reader::OfSome));
        for name in ["autostart_wake_seconds", "autostart_phase_seconds", "left_out", "spans_lost"]
        {
            assert!(all.contains(name) && !some.contains(name), "{name}");
        }
        assert!(some.contains("autostart_waits_total{app=\"own\"} 1"), "{some}");
        assert!(!some.contains("other"), "{some}");
    }
}
