//! `logs`: polls the server's pages; it holds an empty answer, so nothing is asked in vain.

use super::Context;
use crate::args::Logs;
use crate::console::{Console, Style};
use crate::env;
use crate::failure::{Failure, Outcome};
use crate::prompt;
use crate::render;
use perch_api::wire::{LogAttributes, LogQuery, Machine, MachineFilter};
use serde_json::json;
use std::time::Duration;

/// How long the server keeps an empty answer: also how late we notice that our reader went away.
const HOLD: Duration = Duration::from_secs(10);

pub(super) async fn run(context: &Context<'_>, args: Logs) -> Outcome {
    let app = context.app_name(&args.app)?;
    let as_json = context.wants_json(&args.json);
    let hold = if args.no_tail { Duration::ZERO } else { HOLD };
    let machine = chosen_machine(context, &args, &app).await?;
    let region = args.region.or_else(|| context.env.get(env::REGION).map(str::to_owned));
    // With a Machine named its region says nothing more.
    let region = region.filter(|region| machine.is_none() && !region.is_empty());
    let mut query = LogQuery { next_token: String::new(), instance: machine, region, hold };
    loop {
        let page = context.client.read_logs(&app, &query).await?;
        for entry in &page.data {
            print(context, &entry.attributes, as_json)?;
        }
        if args.no_tail || context.console.is_closed() {
            return Ok(());
        }
        if !page.meta.next_token.is_empty() {
            query.next_token = page.meta.next_token;
        }
    }
}

/// The Machine that is named, or chosen from those that are there.
async fn chosen_machine(context: &Context<'_>, args: &Logs, app: &str) -> Outcome<Option<String>> {
    let named = args.machine.clone();
    if !args.select {
        return Ok(named.filter(|id| !id.is_empty()));
    }
    if named.is_some() {
        return Err(Failure::new("--machine can't be used with -s/--select"));
    }
    let machines = context.client.list_machines(app, &MachineFilter::default()).await;
    let mut machines = machines
        .map_err(|error| Failure::from(error).context("could not get a list of machines"))?;
    let id = match machines.len() {
        0 => return Err(Failure::new(format!("app {app} has no machines"))),
        1 => machines.swap_remove(0).id,
        _ => {
            let label = |m: &Machine| format!("{}: {} {}", m.region, m.id, m.name);
            let options: Vec<_> = machines.iter().map(label).collect();
            let chosen = prompt::select(context.console, "Select a machine:", 0, &options);
            let chosen =
                chosen.map_err(|failure| failure.context("could not prompt for machine"))?;
            machines.swap_remove(chosen).id
        }
    };
    Ok(Some(id))
}

fn print(context: &Context<'_>, entry: &LogAttributes, as_json: bool) -> Outcome {
    if !as_json {
        context.console.line(line(context.console, entry));
        return Ok(());
    }
    let value = json!({
        "level": entry.level,
        "instance": entry.instance,
        "message": entry.message,
        "region": entry.region,
        "timestamp": entry.timestamp,
        "meta": {
            "Instance": entry.meta.instance,
            "Region": entry.meta.region,
            "Event": {"Provider": entry.meta.event.provider},
            "HTTP": {
                "Request": {"ID": "", "Method": "", "Version": ""},
                "Response": {"status_code": 0},
            },
            "Error": {"Code": 0, "Message": ""},
            "URL": {"Full": ""},
        },
    });
    Ok(render::json(context.console, &value)?)
}

/// `TIME PROVIDER[INSTANCE] REGION [LEVEL]MESSAGE`, in flyctl's colours.
fn line(console: &Console, entry: &LogAttributes) -> String {
    let time = match entry.timestamp.parse::<jiff::Timestamp>() {
        Ok(time) => render::rfc3339(time),
        Err(_) => entry.timestamp.clone(),
    };
    let provider = entry.meta.event.provider.as_str();
    let origin = match (provider, entry.instance.as_str()) {
        ("", instance) => instance.to_owned(),
        (provider, "") => provider.to_owned(),
        (provider, instance) => format!("{provider}[{instance}]"),
    };
    let color = match entry.level.as_str() {
        "debug" => Style::Cyan,
        "info" => Style::Blue,
        "warn" | "warning" => Style::Yellow,
        _ => Style::Red,
    };
    let (time, region) =
        (console.paint(Style::Faint, &time), console.paint(Style::Green, &entry.region));
    let level = console.paint(color, &entry.level);
    format!("{time} {origin} {region} [{level}]{}", entry.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::{captured, colorful};
    use perch_api::wire::{LogEvent, LogMeta};

    #[test]
    fn a_line_has_flyctls_order_and_no_space_before_the_message() {
        let entry = LogAttributes {
            timestamp: "2026-01-02T03:04:05.678Z".into(),
            message: "hi".into(),
            level: "info".into(),
            instance: "148e".into(),
            region: "lcl".into(),
            meta: LogMeta { event: LogEvent { provider: "app".into() }, ..LogMeta::default() },
        };
        let expected = "\x1b[2m2026-01-02T03:04:05Z\x1b[0m app[148e] \x1b[32mlcl\x1b[0m \
                        [\x1b[34minfo\x1b[0m]hi";
        assert_eq!(line(&colorful().0, &entry), expected);
        let plain = "2026-01-02T03:04:05Z app[148e] lcl [info]hi";
        assert_eq!(line(&captured().0, &entry), plain);
    }
}
