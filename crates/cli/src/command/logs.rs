//! `logs`: polls the server's pages; it holds an empty answer, so nothing is asked in vain.

use super::Context;
use crate::args::Logs;
use crate::console::{Console, Style};
use crate::failure::Outcome;
use crate::render;
use perch_api::wire::{LogAttributes, LogQuery};
use serde_json::json;
use std::time::Duration;

/// How long the server keeps an empty answer: also how late we notice that our reader went away.
const HOLD: Duration = Duration::from_secs(10);

pub(super) async fn run(context: &Context<'_>, args: Logs) -> Outcome {
    let app = context.app_name(&args.app)?;
    let hold = if args.no_tail { Duration::ZERO } else { HOLD };
    // With a Machine named its region says nothing more.
    let region = args.region.filter(|_| args.machine.is_none());
    let mut query = LogQuery { next_token: String::new(), instance: args.machine, region, hold };
    loop {
        let page = context.client.read_logs(&app, &query).await?;
        for entry in &page.data {
            print(context, &entry.attributes, args.json.json)?;
        }
        if args.no_tail || context.console.is_closed() {
            return Ok(());
        }
        if !page.meta.next_token.is_empty() {
            query.next_token = page.meta.next_token;
        }
    }
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
        Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_) => entry.timestamp.clone(),
    };
    let provider = entry.meta.event.provider.as_str();
    let origin = match provider {
        "" => entry.instance.clone(),
        provider => format!("{provider}[{}]", entry.instance),
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
