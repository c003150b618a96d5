//! `launch`: name, organization, region and image become an app, its `fly.toml`, and a first deploy.
//!
//! The image is read before the app is made, and an app of which the server accepts no Machine (its
//! image is refused, say) is removed again: a launch that fails early leaves nothing behind.

use super::deploy::{self, Job, OpenImage, Options};
use super::{Context, apps, config as config_command};
use crate::args::{Launch, Rollout};
use crate::env;
use crate::failure::{Failure, Outcome};
use crate::flytoml::{self, AutoStop, Build, Config, Service, Vm};
use crate::render;
use perch_api::wire::{AddressIntent, App, CreateApp, ImageInfo, MachineFilter};
use perch_core::deploy::Scope;
use std::path::{Path, PathBuf};

/// What an app listens on when nobody says (DE-64).
const PORT_DEFAULT: i64 = 8080;
const NAME_CHARS_MAX: usize = 63;

/// What is about to be made.
struct Plan {
    name: String,
    name_source: &'static str,
    org: String,
    region: String,
    config: Config,
    path: PathBuf,
}

pub(super) async fn run(context: &Context<'_>, args: Launch) -> Outcome {
    let env = super::entered(context.env, &args.path)?;
    let context = context.entering(&env);
    let existing = existing_config(&context, &args)?;
    let plan = make_plan(&context, &args, existing).await?;
    let image = match args.no_deploy && args.rollout.image.is_none() {
        // Nothing to read yet: the image is built when it is deployed.
        true => None,
        false => Some(open_image(&context, &plan.config, &args.rollout)?),
    };
    let config = complete(&args, plan.config.clone(), image.as_ref(), &env.dir)?;
    let plan = Plan { config, ..plan };
    announce(&context, &plan);
    let _made = context.interrupt.hold();
    let app = create_app(&context, &args, &plan).await?;
    let image = match image {
        Some(image) => push_or_undo(&context, &app, image).await?,
        None => None,
    };
    let new_file = !plan.path.exists();
    write_config(&context, &plan)?;
    let loaded = flytoml::load(&plan.path)?;
    config_command::report(&context, &loaded)?;
    match image {
        Some(image) if !args.no_deploy => {
            let name = app.name.clone();
            let result = first_deploy(&context, &args, app, loaded.config, image).await;
            if result.is_err() && undo(&context, &name).await && new_file {
                std::fs::remove_file(&plan.path)?;
            }
            result
        }
        _ => {
            context.console.line("Your app is ready! Deploy with `fly deploy`");
            Ok(())
        }
    }
}

/// A file that is there already, if the user wants it.
fn existing_config(context: &Context<'_>, args: &Launch) -> Outcome<Option<flytoml::Loaded>> {
    let Some(path) = flytoml::find(&context.env.dir, args.config.as_deref())? else {
        return Ok(None);
    };
    let loaded = flytoml::load(&path)?;
    let app = loaded.config.app.clone().unwrap_or_default();
    context.console.line(format!("An existing fly.toml file was found for app {app}"));
    let wanted = args.copy_config || args.yes.yes || args.config.is_some();
    if !wanted
        && !context.confirm("Would you like to use this fly.toml configuration for this app?")?
    {
        return Ok(None);
    }
    // Before anything is created.
    if loaded.cannot_run() {
        config_command::report(context, &loaded)?;
    }
    Ok(Some(loaded))
}

async fn make_plan(
    context: &Context<'_>,
    args: &Launch,
    existing: Option<flytoml::Loaded>,
) -> Outcome<Plan> {
    let default_path = context.env.dir.join("fly.toml");
    let path = existing.as_ref().map_or(default_path, |loaded| loaded.path.clone());
    let mut config = existing.map(|loaded| loaded.config).unwrap_or_default();
    let (name, name_source) = choose_name(context, args, &config)?;
    refuse_taken(context, &name).await?;
    let org = context.org(args.org.org.clone()).await?;
    let region = choose_region(context, args, &config).await?;
    config.app = Some(name.clone());
    config.primary_region = Some(region.clone());
    deploy::apply_flags(&mut config, &args.rollout)?;
    deploy::refuse_unsupported(&config)?;
    if let Some(image) = &args.rollout.image {
        let build = config.build.get_or_insert_default();
        *build = Build { image: Some(image.clone()), ..Build::default() };
    }
    Ok(Plan { name, name_source, org, region, config, path })
}

/// `--name`, else the file's, else the directory's (DE-62).
fn choose_name(
    context: &Context<'_>,
    args: &Launch,
    config: &Config,
) -> Outcome<(String, &'static str)> {
    if let Some(name) = &args.name {
        return Ok((name.clone(), "specified on the command line"));
    }
    if args.generate_name {
        return Ok((apps::generated_name(), "generated"));
    }
    if let Some(app) = config.app.clone().filter(|app| !app.is_empty()) {
        return Ok((app, "from your fly.toml"));
    }
    let name = clean_name(&context.env.dir.file_name().unwrap_or_default().to_string_lossy());
    match name.is_empty() {
        true => Ok((apps::generated_name(), "generated")),
        false => Ok((name, "derived from your directory name")),
    }
}

fn clean_name(text: &str) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = text.chars().map(clean).take(NAME_CHARS_MAX).collect();
    name.trim_matches('-').to_owned()
}

async fn refuse_taken(context: &Context<'_>, name: &str) -> Outcome {
    match context.client.get_app(name).await {
        Ok(_) => Err(Failure::new(format!("App '{name}' already exists")).hint(format!(
            "You can deploy to it using `fly deploy -a {name}`, or launch with another name: \
                 `fly launch --name OTHER`"
        ))),
        Err(error) if error.status() == Some(404) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn choose_region(context: &Context<'_>, args: &Launch, config: &Config) -> Outcome<String> {
    let asked = args.region.clone().or_else(|| context.env.get(env::REGION).map(str::to_owned));
    let regions = context.client.list_regions().await?;
    let known = |code: &str| regions.regions.iter().any(|region| region.code == code);
    let codes = || regions.regions.iter().map(|r| r.code.clone()).collect::<Vec<_>>().join(", ");
    match asked {
        Some(code) if known(&code) => Ok(code),
        Some(code) => Err(Failure::new(format!("region '{code}' does not exist here"))
            .hint(format!("There is {}", codes()))),
        None => {
            let of_file = config.primary_region.clone().filter(|code| known(code));
            Ok(of_file.unwrap_or(regions.nearest))
        }
    }
}

fn open_image(context: &Context<'_>, config: &Config, rollout: &Rollout) -> Outcome<OpenImage> {
    deploy::open(context, config, rollout, &context.env.dir)
}

/// Fills in what a new file has (DE-63, DE-64); what an existing one says is kept.
fn complete(
    args: &Launch,
    mut config: Config,
    image: Option<&OpenImage>,
    dir: &Path,
) -> Outcome<Config> {
    let asked = (args.internal_port != -1).then_some(args.internal_port);
    if let Some(port) = asked
        && !(1..=65535).contains(&port)
    {
        return Err(Failure::new(format!("internal port {port} is out of range"))
            .hint("Use --internal-port with 1 to 65535"));
    }
    if let Some(command) = &args.command {
        config.processes.insert("app".to_owned(), command.clone());
    }
    match &mut config.http_service {
        Some(service) => service.internal_port = asked.unwrap_or(service.internal_port),
        None if config.services.is_empty() => {
            let exposed = || image.and_then(OpenImage::exposed_port).map(i64::from);
            let port = asked.or_else(exposed).or_else(|| dockerfile_port(dir));
            let auto_stop = auto_stop(&args.auto_stop)?;
            config.http_service = Some(generated_service(port.unwrap_or(PORT_DEFAULT), auto_stop));
        }
        None => {}
    }
    if config.vm.is_empty() {
        config.vm = vec![generated_vm()];
    }
    Ok(config)
}

fn auto_stop(word: &str) -> Outcome<AutoStop> {
    match word {
        "off" | "false" => Ok(AutoStop::Off),
        "stop" | "true" => Ok(AutoStop::Stop),
        "suspend" => Ok(AutoStop::Suspend),
        _ => Err(Failure::new(format!("'{word}' is not a way to stop Machines"))
            .hint("Use --auto-stop off, stop or suspend")),
    }
}

/// flyctl's own, but for `force_https`: there is no TLS at a Flycast address (FC-22).
fn generated_service(internal_port: i64, auto_stop: AutoStop) -> Service {
    Service {
        internal_port,
        force_https: false,
        auto_stop_machines: Some(auto_stop),
        auto_start_machines: Some(true),
        min_machines_running: Some(0),
        processes: vec!["app".to_owned()],
        ..Service::default()
    }
}

fn generated_vm() -> Vm {
    Vm {
        memory: Some("1gb".to_owned()),
        cpu_kind: Some("shared".to_owned()),
        cpus: Some(1),
        memory_mb: Some(1024),
        ..Vm::default()
    }
}

/// The first port that a Dockerfile exposes.
fn dockerfile_port(dir: &Path) -> Option<i64> {
    let text = std::fs::read_to_string(dir.join("Dockerfile")).ok()?;
    text.lines().find_map(|line| {
        let (word, rest) = line.trim().split_once(char::is_whitespace)?;
        let port = rest.split_whitespace().next()?;
        let port = port.strip_suffix("/tcp").unwrap_or(port);
        word.eq_ignore_ascii_case("EXPOSE").then(|| port.parse().ok()).flatten()
    })
}

fn announce(context: &Context<'_>, plan: &Plan) {
    let console = context.console;
    console.line(format!("Creating app in {}\n", context.env.dir.display()));
    console.line("We're about to launch your app. Here's what you're getting:\n");
    let vm = plan.config.vm.first().cloned().unwrap_or_default();
    let size = vm.size.unwrap_or_else(|| "shared-cpu-1x".to_owned());
    let memory = vm.memory.map(|memory| format!(", {memory} RAM")).unwrap_or_default();
    let rows = [
        ("Organization:", plan.org.clone(), "specified on the command line or the default one"),
        ("Name:", plan.name.clone(), plan.name_source),
        ("Region:", plan.region.clone(), "specified on the command line or this host's"),
        ("App Machines:", format!("{size}{memory}"), "most apps need about 1GB of RAM"),
    ];
    let widest = rows.iter().map(|(_, value, _)| value.len()).max().unwrap_or(0);
    for (label, value, source) in rows {
        console.line(format!("{label:<13} {value:<widest$} ({source})"));
    }
    console.line("");
}

async fn create_app(context: &Context<'_>, args: &Launch, plan: &Plan) -> Outcome<App> {
    let address_intent = match (args.rollout.flycast, args.rollout.no_public_ips) {
        (true, _) => AddressIntent::Private,
        (false, true) => AddressIntent::None,
        (false, false) => AddressIntent::Public,
    };
    let input = CreateApp {
        name: plan.name.clone(),
        org_slug: plan.org.clone(),
        network: String::new(),
        address_intent,
    };
    let app = apps::create(context, &input).await?;
    context.console.line(format!("Created app '{}' in organization '{}'", app.name, plan.org));
    if !app.hostname.is_empty() {
        context.console.line(format!("Hostname: {}", app.hostname));
    }
    Ok(app)
}

async fn push_or_undo(
    context: &Context<'_>,
    app: &App,
    image: OpenImage,
) -> Outcome<Option<ImageInfo>> {
    let brought = context.interrupt.cut(deploy::bring(context, &app.name, image)).await;
    if brought.is_err() {
        undo(context, &app.name).await;
    }
    brought.map(Some)
}

/// Removes an app that was made a moment ago and has no Machine: nobody wants it. Answers whether it is
/// gone; one that cannot be looked at or removed stays, and that is said.
async fn undo(context: &Context<'_>, app: &str) -> bool {
    let machines = context.client.list_machines(app, &MachineFilter::default()).await;
    if !machines.is_ok_and(|machines| machines.is_empty()) {
        return false;
    }
    match context.client.delete_app(app).await {
        Ok(()) => {
            context.console.note(format!("Removed the app {app} again: none of it was running"));
            true
        }
        Err(error) => {
            context.console.note(format!("could not remove the app {app} again: {error}"));
            false
        }
    }
}

/// Writes a new file, or changes name and region in an existing one and leaves the rest as it was typed.
fn write_config(context: &Context<'_>, plan: &Plan) -> Outcome {
    let existing = std::fs::read_to_string(&plan.path).ok();
    let edited = existing.as_deref().and_then(|text| edit(text, plan));
    let text = edited.unwrap_or_else(|| {
        let header = flytoml::header(&plan.name, &render::now_rfc3339());
        format!("{header}{}", flytoml::to_toml(&plan.config))
    });
    std::fs::write(&plan.path, text).map_err(|error| {
        Failure::from(error).context(format!("could not write {}", plan.path.display()))
    })?;
    let name = plan.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    context.console.line(format!("Wrote config file {name}"));
    Ok(())
}

/// The existing text with the new name and region; `None` when that would not say what the plan says.
fn edit(text: &str, plan: &Plan) -> Option<String> {
    let mut document: toml_edit::DocumentMut = text.parse().ok()?;
    document["app"] = toml_edit::value(plan.name.as_str());
    document["primary_region"] = toml_edit::value(plan.region.as_str());
    let text = document.to_string();
    let read = flytoml::parse(&plan.path, &text).ok()?;
    let same = |config: &Config| Config { build: None, vm: Vec::new(), ..config.clone() };
    (same(&read.config) == same(&plan.config) && read.config.build == plan.config.build)
        .then_some(text)
}

async fn first_deploy(
    context: &Context<'_>,
    args: &Launch,
    app: App,
    config: Config,
    image: ImageInfo,
) -> Outcome {
    let options = Options::resolve(context, &config, &args.rollout, Scope::Everything)?;
    deploy::deploy(context, Job { app, config, image, options, work: deploy::Work::Deploy }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directorys_name_becomes_an_apps_name() {
        assert_eq!(clean_name("My App_2"), "my-app-2");
        assert_eq!(clean_name("..."), "");
        assert_eq!(clean_name(&"x".repeat(99)).len(), NAME_CHARS_MAX);
    }

    #[test]
    fn a_generated_service_never_forces_https() {
        let service = generated_service(80, AutoStop::Stop);
        let config = Config { http_service: Some(service), ..Config::default() };
        assert!(flytoml::to_toml(&config).contains("  force_https = false\n"));
    }
}
