//! `platform regions | vm-sizes`.

use super::Context;
use crate::args::Json;
use crate::failure::{Failure, Outcome};
use crate::flytoml::presets;
use crate::render;
use clap::Subcommand;
use perch_api::wire::Region;
use serde_json::{Map, Value, json};

#[derive(Debug, Subcommand)]
pub(crate) enum Platform {
    /// List regions
    Regions {
        #[command(flatten)]
        json: Json,
    },
    /// List the sizes of Machines that have a name
    VmSizes {
        #[command(flatten)]
        json: Json,
    },
}

pub(super) async fn run(context: &Context<'_>, command: Platform) -> Outcome {
    match command {
        Platform::Regions { json } => regions(context, context.wants_json(&json)).await,
        Platform::VmSizes { json } => sizes(context, context.wants_json(&json)),
    }
}

/// Where Machines can be made, in the groups of the world's parts, if any is known.
pub(super) async fn regions(context: &Context<'_>, as_json: bool) -> Outcome {
    let page = context.client.list_regions().await;
    let page = page.map_err(|it| Failure::from(it).context("failed retrieving regions"))?;
    let mut regions: Vec<_> = page.regions.into_iter().filter(|it| !it.deprecated).collect();
    regions.sort_by(|a, b| a.name.cmp(&b.name));
    if as_json {
        let list: Vec<Value> = regions.iter().map(region_json).collect();
        return Ok(render::json(context.console, &list)?);
    }
    regions.sort_by(|a, b| a.geo_region.cmp(&b.geo_region));
    let mut rows = Vec::new();
    for group in regions.chunk_by(|a, b| a.geo_region == b.geo_region) {
        let name = part_of_world(&group[0].geo_region);
        if !name.is_empty() {
            rows.extend([vec![String::new()], vec![name.to_owned()]]);
        }
        rows.extend(group.iter().map(region_row));
    }
    render::table(context.console, "", &["Name", "Code", "MPG"], &rows);
    Ok(())
}

/// The wire form; Go writes whole numbers without a fraction.
fn region_json(region: &Region) -> Value {
    let whole = |degrees: f64| match degrees.fract() == 0.0 {
        true => json!(degrees as i64),
        false => json!(degrees),
    };
    json!({
        "code": region.code,
        "name": region.name,
        "latitude": whole(region.latitude),
        "longitude": whole(region.longitude),
        "gateway_available": region.gateway_available,
        "requires_paid_plan": region.requires_paid_plan,
        "deprecated": region.deprecated,
        "capacity": region.capacity,
        "geo_region": region.geo_region,
        "mpg_available": region.mpg_available,
    })
}

fn part_of_world(code: &str) -> &'static str {
    match code {
        "africa" => "Africa",
        "asia_pacific" => "Asia Pacific",
        "europe" => "Europe",
        "north_america" => "North America",
        "south_america" => "South America",
        _ => "",
    }
}

fn region_row(region: &Region) -> Vec<String> {
    let mark = if region.mpg_available { "✓" } else { "" };
    vec![region.name.clone(), region.code.clone(), mark.to_owned()]
}

fn sizes(context: &Context<'_>, as_json: bool) -> Outcome {
    let presets = presets();
    if as_json {
        let mut sizes: Vec<_> = presets.iter().collect();
        sizes.sort_by(|a, b| a.0.cmp(&b.0));
        let guests = sizes.into_iter().map(|(name, it)| {
            let guest =
                json!({"cpu_kind": it.cpu_kind, "cpus": it.cpus, "memory_mb": it.memory_mb});
            (name.clone(), guest)
        });
        let guests: Map<String, Value> = guests.collect();
        return Ok(render::json(context.console, &guests)?);
    }
    for (title, kind) in [("Machines platform", "shared"), ("", "performance")] {
        let of_kind = presets.iter().filter(|(_, it)| it.cpu_kind == kind);
        let row = |(name, it): &(String, _)| size_row(name, it);
        let rows: Vec<_> = of_kind.map(row).collect();
        render::table(context.console, title, &["Name", "CPU Cores", "Memory"], &rows);
    }
    Ok(())
}

fn size_row(name: &str, preset: &crate::flytoml::Preset) -> Vec<String> {
    vec![name.to_owned(), preset.cpus.to_string(), format!("{} MB", preset.memory_mb)]
}
