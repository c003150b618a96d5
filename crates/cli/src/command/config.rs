//! `config validate | show | env`; `config save` has a file of its own.

use super::Context;
use crate::args::{AppArgs, Config as Command};
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use crate::flytoml::{self, Config, Level, LoadError, Loaded, Problem, Verdict};
use crate::json::Json;
use crate::{render, yaml};
use perch_api::wire::AddressIntent;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;

/// A file is judged without a server; one that answers at once may add what it knows of the app.
const SERVER_TIMEOUT: Duration = Duration::from_millis(200);

pub(super) async fn run(context: &Context<'_>, command: Command) -> Outcome {
    match command {
        Command::Validate { app, strict, json: false } => validate(context, &app, strict).await,
        Command::Validate { app, strict, json: true } => validate_json(context, &app, strict).await,
        Command::Show { app, local, yaml: _, toml: _, machines: true } => {
            machines(context, &app, local).await
        }
        Command::Show { app, local, yaml, toml, machines: false } => {
            let form = match (yaml, toml) {
                (true, _) => Form::Yaml,
                (false, true) => Form::Toml,
                (false, false) => Form::Json,
            };
            show(context, &app, local, form).await
        }
        Command::Save(args) => super::save::run(context, args).await,
        Command::Env(app) => env(context, &app).await,
    }
}

/// In which language a configuration is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Yaml,
    Toml,
}

/// Without a file the deployed configuration is judged, as flyctl does.
async fn validate(context: &Context<'_>, args: &AppArgs, strict: bool) -> Outcome {
    let loaded = match context.config_file(args)? {
        Some(loaded) => loaded,
        None if context.given_app(args).is_some() => deployed(context, args).await?,
        None => return Err(missing()),
    };
    let judged = judge(context, &loaded, Use::Validate);
    for problem in hints_of_server(context, args, &loaded).await {
        hint(context, &loaded.path, problem);
    }
    context.console.line("");
    if strict && !loaded.strict_unknown.is_empty() {
        context.console.line("\nStrict validation found unrecognised sections or keys:");
        for (key, _) in &loaded.strict_unknown {
            context.console.line(format!("  - {key}"));
        }
        context.console.line("\n");
        judged?;
        return Err(Failure::new("strict validation failed").hint(
            "Remove them, or write them as the hints say; without --strict they are ignored",
        ));
    }
    judged
}

fn missing() -> Failure {
    Failure::new("no fly.toml here").hint("Run `fly launch` to write one, or name it with -c PATH")
}

/// What a file is judged for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// As flyctl judges it.
    Validate,
    /// What cannot run here is wrong too.
    Deploy,
}

/// Prints what is wrong with a file that is to be deployed, and fails when something stops that.
pub(super) fn report(context: &Context<'_>, loaded: &Loaded) -> Outcome {
    judge(context, loaded, Use::Deploy)
}

fn judge(context: &Context<'_>, loaded: &Loaded, wanted: Use) -> Outcome {
    let path = loaded.path.display();
    let console = context.console;
    console.line(format!("Validating {path}"));
    let (wrong, warn) = (console.paint(Style::Red, "✘"), console.paint(Style::Yellow, "WARN"));
    let mut valid = true;
    for problem in &loaded.problems {
        let stops =
            problem.is_error() || (wanted == Use::Deploy && problem.level == Level::Refused);
        match (stops, problem.level) {
            (true, _) => {
                let gap = if valid { "\n" } else { "" };
                console.line(format!("{gap}   {wrong}{path}:{problem}"));
            }
            (false, Level::Warning) => console.line(format!("   {warn} {path}:{problem}")),
            (false, _) => hint(context, &loaded.path, problem),
        }
        valid &= !stops;
    }
    if !valid {
        return Err(Failure::new("App configuration is not valid"));
    }
    console.line(format!("{} Configuration is valid", console.paint(Style::Green, "✓")));
    Ok(())
}

fn hint(context: &Context<'_>, path: &Path, problem: &Problem) {
    context.console.note(format!("hint: {}:{problem}", path.display()));
}

/// What only the app's addresses tell: asked of the server if there is one, and nobody waits for it.
async fn hints_of_server<'l>(
    context: &Context<'_>,
    args: &AppArgs,
    loaded: &'l Loaded,
) -> &'l [Problem] {
    let name = context.given_app(args).or(loaded.config.app.clone());
    let Some(name) = name.filter(|name| !name.is_empty()) else { return &[] };
    if loaded.when_private.is_empty() {
        return &[];
    }
    let app = tokio::time::timeout(SERVER_TIMEOUT, context.client.get_app(&name)).await;
    match app {
        Ok(Ok(app)) if app.address_intent == AddressIntent::Private => &loaded.when_private,
        _ => &[],
    }
}

/// The judgement as one object, also of a file that cannot be parsed.
async fn validate_json(context: &Context<'_>, args: &AppArgs, strict: bool) -> Outcome {
    let path = flytoml::find(&context.env.dir, args.config.as_deref())?.ok_or_else(missing)?;
    let (object, valid) = match flytoml::load(&path) {
        Ok(loaded) => {
            let hints = hints_of_server(context, args, &loaded).await;
            let strict_fails = strict && !loaded.strict_unknown.is_empty();
            (judgement(&loaded, hints), !loaded.has_errors() && !strict_fails)
        }
        Err(LoadError::Syntax { path, line, column, message, .. }) => {
            (syntax_judgement(&path, (line, column), &message), false)
        }
        Err(error) => return Err(error.into()),
    };
    context.console.line(serde_json::to_string_pretty(&object)?);
    match valid {
        true => Ok(()),
        false => Err(Failure::new("App configuration is not valid")),
    }
}

fn judgement(loaded: &Loaded, hints_of_server: &[Problem]) -> Value {
    let list = |wanted: &[Level]| -> Vec<Value> {
        let problems = loaded.problems.iter().filter(|problem| wanted.contains(&problem.level));
        problems.map(|problem| entry(&loaded.path, problem)).collect()
    };
    let mut hints = list(&[Level::Hint, Level::Refused]);
    hints.extend(hints_of_server.iter().map(|problem| entry(&loaded.path, problem)));
    let unknown = loaded.strict_unknown.iter().map(|(key, at)| place(&loaded.path, key, *at));
    json!({
        "verdict": loaded.verdict().to_string(),
        "errors": list(&[Level::Shape, Level::Invalid, Level::Conversion]),
        "warnings": list(&[Level::Warning]),
        "hints": hints,
        "strict_unknown": unknown.map(Value::Object).collect::<Vec<_>>(),
    })
}

fn syntax_judgement(path: &Path, at: (usize, usize), message: &str) -> Value {
    let mut error = place(path, "", Some(at));
    error.insert("message".to_owned(), message.into());
    json!({
        "verdict": Verdict::RejectParse.to_string(),
        "errors": [error],
        "warnings": [],
        "hints": [],
        "strict_unknown": [],
    })
}

fn entry(path: &Path, problem: &Problem) -> Value {
    let mut entry = place(path, &problem.key, problem.at);
    entry.insert("message".to_owned(), problem.text.as_str().into());
    if let Some(remedy) = &problem.remedy {
        entry.insert("remedy".to_owned(), remedy.as_str().into());
    }
    if problem.level == Level::Refused {
        entry.insert("deploy_refuses".to_owned(), true.into());
    }
    Value::Object(entry)
}

fn place(path: &Path, key: &str, at: Option<(usize, usize)>) -> Map<String, Value> {
    let (line, column) = at.unzip();
    let file = path.display().to_string();
    let place = [("file", Value::from(file)), ("line", line.into()), ("column", column.into())];
    let place = place.into_iter().chain([("key", Value::from(key))]);
    place.map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The deployed configuration, which the newest release keeps, or the local file.
async fn show(context: &Context<'_>, args: &AppArgs, local: bool, form: Form) -> Outcome {
    let loaded = shown_file(context, args, local).await?;
    check_shape(&loaded)?;
    context.console.text(&text_of(&loaded.config, form)?);
    Ok(())
}

/// A file that is only invalid has a normal form all the same.
pub(super) fn check_shape(loaded: &Loaded) -> Outcome {
    match loaded.problems.iter().find(|problem| problem.is_error()) {
        Some(problem) if problem.level == Level::Shape => {
            Err(Failure::new(format!("{}:{problem}", loaded.path.display())))
        }
        _ => Ok(()),
    }
}

/// What is set by secrets, and what by the configuration.
async fn env(context: &Context<'_>, args: &AppArgs) -> Outcome {
    let app = context.app_name(args)?;
    let secrets = context.client.list_secrets(&app).await?;
    let rows: Vec<_> = secrets.into_iter().map(|it| vec![it.name, it.digest]).collect();
    render::table(context.console, "Secrets", &["Name", "Digest"], &rows);
    let loaded = deployed(context, args).await?;
    let pairs = loaded.config.env.iter();
    let rows: Vec<_> = pairs.map(|(name, value)| vec![name.clone(), value.clone()]).collect();
    render::table(context.console, "Environment Variables", &["Name", "Value"], &rows);
    Ok(())
}

/// A configuration as a new file has it, in the language that the file's name tells.
pub(super) fn written(config: &Config, path: &Path) -> Outcome<String> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    text_of(
        config,
        match extension {
            Some("json") => Form::Json,
            Some("yaml" | "yml") => Form::Yaml,
            _ => Form::Toml,
        },
    )
}

/// With flyctl's header, which JSON has no comments for.
fn text_of(config: &Config, form: Form) -> Outcome<String> {
    let app = config.app.as_deref().unwrap_or_default();
    let header = |form| flytoml::header_of(form, app, &render::now_rfc3339());
    let tree = Value::Object(flytoml::to_json(config));
    Ok(match form {
        Form::Json => format!("{}\n", spaced(&Json::of(&tree)?.pretty("  "))),
        Form::Yaml => format!("{}{}\n", header("yaml"), spaced(&yaml::of(&tree))),
        Form::Toml => format!("{}{}", header("toml"), flytoml::to_toml(config)),
    })
}

async fn shown_file(context: &Context<'_>, args: &AppArgs, local: bool) -> Outcome<Loaded> {
    match local {
        true => context.config_file(args)?.ok_or_else(missing),
        false => deployed(context, args).await,
    }
}

/// The configuration, its Machines and the verdict in one object.
async fn machines(context: &Context<'_>, args: &AppArgs, local: bool) -> Outcome {
    let loaded = shown_file(context, args, local).await?;
    context.console.line(spaced(&Json::of(&flytoml::described(&loaded))?.pretty("  ")));
    Ok(())
}

pub(super) async fn deployed(context: &Context<'_>, args: &AppArgs) -> Outcome<Loaded> {
    let app = context.app_name(args)?;
    let release = context.client.current_release(&app).await;
    let definition = match release {
        Ok(release) => release.definition,
        Err(error) if error.status() == Some(404) => None,
        Err(error) => return Err(error.into()),
    };
    let Some(definition) = definition else {
        return Err(Failure::new(format!("app {app} has not been deployed yet"))
            .hint("Show the local file with `fly config show --local`"));
    };
    let name = std::path::PathBuf::from(format!("{app}.json"));
    Ok(flytoml::parse(&name, &serde_json::to_string(&definition)?)?)
}

/// flyctl puts an empty line before each key that opens an object or list, unless the line before did
/// so too.
fn spaced(text: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let mut opened = true;
    for line in text.lines() {
        let opens = opens(line);
        if opens && !opened {
            out.push("");
        }
        opened = opens;
        out.push(line);
    }
    out.join("\n")
}

/// Whether the line is a key of letters, digits and `_` whose value begins on the next one.
fn opens(line: &str) -> bool {
    let line = line.trim_start();
    let line = line.strip_prefix('"').unwrap_or(line);
    let rest = line.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let named = rest.len() < line.len();
    let rest = rest.strip_prefix('"').unwrap_or(rest);
    named && matches!(rest, ":" | ": {" | ": [")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_line_stands_before_each_section() {
        let json = "{\n  \"a\": 1,\n  \"b\": {\n    \"c\": [\n      1\n    ]\n  }\n}";
        let expected = "{\n  \"a\": 1,\n\n  \"b\": {\n    \"c\": [\n      1\n    ]\n  }\n}";
        assert_eq!(spaced(json), expected);
        let list = "{\n  \"a\": [\n    {\n      \"b\": {}\n    },\n    {\n      \"c-d\": [\n";
        let expected = "{\n\n  \"a\": [\n    {\n      \"b\": {}\n    },\n    {\n      \"c-d\": [";
        assert_eq!(spaced(list), expected, "an object in a list has no key");
    }
}
