//! The older and looser spellings that flyctl still accepts, turned into today's form on the untyped
//! tree (fly-toml-compat section 4). Each works only in the sections named there; the same looseness
//! elsewhere is an error of type.

use super::gotext;
use super::problem::Problems;
use super::tree::{Entry, Map, Node, Span, Tree};

const CHECK_DURATIONS: [&str; 3] = ["interval", "timeout", "grace_period"];

/// Applies all spellings in flyctl's order; what cannot be understood becomes a problem.
pub(crate) fn patch(map: &mut Map, problems: &mut Problems<'_>) {
    patch_env(map, problems);
    patch_services(map, problems);
    patch_processes(map, problems);
    patch_experimental(map, problems);
    patch_checks(map, problems);
    merge_sections(map, &["compute", "computes", "vm"], "vm", problems);
    each_table(map, "vm", |vm| number_to_text(vm, "memory"));
    merge_sections(map, &["mount", "mounts"], "mounts", problems);
    each_table(map, "mounts", |mount| number_to_text(mount, "initial_size"));
    merge_sections(map, &["metric", "metrics"], "metrics", problems);
    if let Some(value) = map.get_mut("kill_timeout") {
        patch_kill_timeout(value);
    }
    patch_build(map, problems);
}

fn patch_env(map: &mut Map, problems: &mut Problems<'_>) {
    let Some(env) = map.get_mut("env") else { return };
    let span = env.span.clone();
    let tables = match std::mem::replace(&mut env.node, Node::Null) {
        Node::Null => return,
        Node::Table(table) => vec![table],
        Node::List(items) => items.into_iter().filter_map(as_table).collect(),
        other => {
            env.node = other;
            problems.error("env", &span, "must be a table of variables".into(), example("[env]"));
            env.node = Node::Null;
            return;
        }
    };
    let mut merged = Map::default();
    for mut entry in tables.into_iter().flat_map(|table| table.0) {
        entry.value.node = Node::Text(gotext::print(&entry.value.node));
        merged.put(entry);
    }
    env.node = Node::Table(merged);
}

fn patch_services(map: &mut Map, problems: &mut Problems<'_>) {
    merge_sections(map, &["services"], "services", problems);
    let Some(Tree { node: Node::List(services), .. }) = map.get_mut("services") else { return };
    services.retain(|service| !matches!(&service.node, Node::Table(table) if table.0.is_empty()));
    for (index, service) in services.iter_mut().enumerate() {
        if let Node::Table(service) = &mut service.node {
            patch_service(service, &format!("services[{index}]"), problems);
        }
    }
    if services.is_empty() {
        map.remove("services");
    }
}

fn patch_service(service: &mut Map, path: &str, problems: &mut Problems<'_>) {
    patch_concurrency(service, path, problems);
    text_to_integer(service, "internal_port", path, problems);
    if one_to_list(service, "ports", path, problems) {
        each_table_at(service, "ports", path, |port, path| {
            text_to_integer(port, "port", path, problems);
        });
    }
    for kind in ["tcp_checks", "http_checks"] {
        one_to_list(service, kind, path, problems);
        each_table_at(service, kind, path, |check, path| patch_check(check, path, problems));
        if matches!(service.get(kind), Some(Tree { node: Node::List(list), .. }) if list.is_empty())
        {
            service.remove(kind);
        }
    }
}

/// `concurrency = "20,25"` is soft and hard limit of requests.
fn patch_concurrency(service: &mut Map, path: &str, problems: &mut Problems<'_>) {
    let Some(value) = service.get_mut("concurrency") else { return };
    let span = value.span.clone();
    let key = format!("{path}.concurrency");
    let remedy = || example("[services.concurrency] with type, soft_limit and hard_limit");
    match &value.node {
        Node::Table(_) | Node::Null => {}
        Node::Text(text) => match limits(text) {
            Some((soft, hard)) => *value = limits_table(soft, hard, &span),
            None => {
                let text = format!("unknown value '{text}' for concurrency limits");
                problems.error(&key, &span, text, remedy());
                value.node = Node::Null;
            }
        },
        _ => {
            let text = format!("must be a table, found {}", value.kind());
            problems.error(&key, &span, text, remedy());
            value.node = Node::Null;
        }
    }
}

fn limits(text: &str) -> Option<(i64, i64)> {
    let (soft, hard) = text.split_once(',')?;
    Some((soft.parse().ok()?, hard.parse().ok()?))
}

fn limits_table(soft: i64, hard: i64, span: &Span) -> Tree {
    let entry = |key: &str, value| Entry { key: key.into(), key_span: span.clone(), value };
    let entries = vec![
        entry("type", Tree::text("requests", span.clone())),
        entry("soft_limit", Tree::integer(soft, span.clone())),
        entry("hard_limit", Tree::integer(hard, span.clone())),
    ];
    Tree::table(Map(entries), span.clone())
}

/// Numbers in durations are milliseconds here (T-20), empty and boolean ones are unset, and headers
/// may be a list of names and values.
fn patch_check(check: &mut Map, path: &str, problems: &mut Problems<'_>) {
    for key in CHECK_DURATIONS {
        let unset = match check.get_mut(key) {
            Some(value) => patch_milliseconds(value),
            None => false,
        };
        if unset {
            check.remove(key);
        }
    }
    patch_headers(check, path, problems);
}

/// Turns a number of milliseconds into text; answers whether the value means "not set".
fn patch_milliseconds(value: &mut Tree) -> bool {
    let ms = match &value.node {
        Node::Integer(ms) => *ms as f64,
        Node::Float(ms) => *ms,
        Node::Text(text) => return text.is_empty(),
        Node::Bool(_) | Node::Null => return true,
        Node::Time(_) | Node::List(_) | Node::Table(_) => return false,
    };
    value.node = Node::Text(format!("{ms}ms"));
    false
}

fn patch_headers(check: &mut Map, path: &str, problems: &mut Problems<'_>) {
    let Some(headers) = check.get_mut("headers") else { return };
    let span = headers.span.clone();
    match &mut headers.node {
        Node::Table(table) => table.0.iter_mut().for_each(|entry| scalar_to_text(&mut entry.value)),
        Node::List(items) if items.is_empty() => {
            check.remove("headers");
        }
        Node::List(items) => match items.drain(..).map(named_header).collect() {
            Some(entries) => headers.node = Node::Table(Map(entries)),
            None => {
                let text = "each header needs a name".to_owned();
                let remedy = example("headers = { Accept = \"text/html\" }");
                problems.error(&format!("{path}.headers"), &span, text, remedy);
                check.remove("headers");
            }
        },
        _ => {}
    }
}

fn named_header(item: Tree) -> Option<Entry> {
    let mut table = as_table(item)?;
    let name = table.remove("name")?;
    let Node::Text(key) = name.value.node else { return None };
    let mut value = match table.remove("value") {
        Some(entry) => entry.value,
        None => Tree::text("", None),
    };
    scalar_to_text(&mut value);
    Some(Entry { key, key_span: name.key_span, value })
}

/// A list of names and commands becomes a table; what yields no group is dropped.
fn patch_processes(map: &mut Map, problems: &mut Problems<'_>) {
    let Some(value) = map.get_mut("processes") else { return };
    let span = value.span.clone();
    match std::mem::replace(&mut value.node, Node::Null) {
        Node::Table(table) => value.node = Node::Table(table),
        Node::List(items) => {
            let mut groups = Map::default();
            items.into_iter().filter_map(named_command).for_each(|entry| groups.put(entry));
            match groups.0.is_empty() {
                true => drop(map.remove("processes")),
                false => value.node = Node::Table(groups),
            }
        }
        Node::Null => {}
        _ => {
            let text = "must be a table of groups and commands".to_owned();
            problems.error("processes", &span, text, example("[processes]\\n  web = \"run web\""));
        }
    }
}

fn named_command(item: Tree) -> Option<Entry> {
    let mut table = as_table(item)?;
    let name = table.remove("name")?;
    let Node::Text(key) = name.value.node else { return None };
    let value = table.remove("command").map_or(Tree::text("", None), |entry| entry.value);
    Some(Entry { key, key_span: name.key_span, value })
}

fn patch_experimental(map: &mut Map, problems: &mut Problems<'_>) {
    let Some(value) = map.get_mut("experimental") else { return };
    let span = value.span.clone();
    let Node::Table(table) = &mut value.node else {
        problems.error("experimental", &span, "must be a table".into(), example("[experimental]"));
        map.remove("experimental");
        return;
    };
    if table.0.is_empty() {
        map.remove("experimental");
        return;
    }
    for key in ["cmd", "entrypoint", "exec"] {
        if let Some(value) = table.get_mut(key)
            && let Node::Text(_) = value.node
        {
            *value = Tree::list(vec![value.clone()], value.span.clone());
        }
    }
    let kill_timeout = table.get("kill_timeout").cloned();
    let port = table.get("metrics_port").cloned();
    let path = table.get("metrics_path").cloned();
    if let Some(value) = kill_timeout
        && map.get("kill_timeout").is_none()
    {
        map.put(made("kill_timeout", value));
    }
    if map.get("metrics").is_none()
        && map.get("metric").is_none()
        && (port.is_some() || path.is_some())
    {
        let entries =
            [port.map(|v| made("port", v)), path.map(|v| made("path", v))].into_iter().flatten();
        map.put(made("metrics", Tree::table(Map(entries.collect()), span)));
    }
}

/// Top-level checks may be a list whose items carry a name.
fn patch_checks(map: &mut Map, problems: &mut Problems<'_>) {
    let Some(value) = map.get_mut("checks") else { return };
    let span = value.span.clone();
    if let Node::List(items) = &mut value.node {
        let named: Option<Vec<Entry>> = items.drain(..).map(named_check).collect();
        let Some(entries) = named else {
            let text = "each check needs a name".to_owned();
            problems.error("checks", &span, text, example("[checks.NAME]"));
            map.remove("checks");
            return;
        };
        value.node = Node::Table(Map(entries));
    }
    let Node::Table(table) = &mut value.node else { return };
    for entry in &mut table.0 {
        if let Node::Table(check) = &mut entry.value.node {
            patch_check(check, &format!("checks.{}", entry.key), problems);
        }
    }
    if table.0.is_empty() {
        map.remove("checks");
    }
}

fn named_check(item: Tree) -> Option<Entry> {
    let span = item.span.clone();
    let table = as_table(item)?;
    let Some(Tree { node: Node::Text(key), .. }) = table.get("name") else { return None };
    let (key, key_span) = (key.clone(), span.clone());
    Some(Entry { key, key_span, value: Tree::table(table, span) })
}

/// A bare number is seconds (T-21), its fraction cut off; empty and boolean are unset.
fn patch_kill_timeout(value: &mut Tree) {
    value.node = match &value.node {
        Node::Integer(seconds) => Node::Text(format!("{seconds}s")),
        Node::Float(seconds) => Node::Text(format!("{}s", seconds.trunc())),
        Node::Text(text) if text.is_empty() => Node::Null,
        Node::Bool(_) => Node::Null,
        _ => return,
    };
}

fn patch_build(map: &mut Map, problems: &mut Problems<'_>) {
    let Some(value) = map.get_mut("build") else { return };
    let span = value.span.clone();
    let Node::Table(table) = &mut value.node else {
        problems.error("build", &span, "must be a table".into(), example("[build]"));
        map.remove("build");
        return;
    };
    if let Some(mut entry) = table.remove("build_target") {
        entry.key = "build-target".to_owned();
        table.put(entry);
    }
    if table.0.is_empty() {
        map.remove("build");
    }
}

/// Collects tables and lists of tables under several names into one list under one name.
fn merge_sections(map: &mut Map, names: &[&str], into: &str, problems: &mut Problems<'_>) {
    let mut items = Vec::new();
    let (mut span, mut found) = (None, false);
    for name in names {
        let Some(entry) = map.remove(name) else { continue };
        span = span.or(entry.value.span.clone()).or(entry.key_span);
        match entry.value.node {
            Node::Null => continue,
            Node::Table(_) => items.push(entry.value),
            Node::List(list) if list.iter().all(|item| matches!(item.node, Node::Table(_))) => {
                items.extend(list);
            }
            _ => {
                let text = "must be a table or a list of tables".to_owned();
                problems.error(name, &entry.value.span, text, example(&format!("[[{into}]]")));
            }
        }
        found = true;
    }
    if found {
        map.put(made(into, Tree::list(items, span)));
    }
}

/// A single table where a list is wanted becomes a list of one; answers whether there is a list.
fn one_to_list(map: &mut Map, key: &str, path: &str, problems: &mut Problems<'_>) -> bool {
    let Some(value) = map.get_mut(key) else { return false };
    if let Node::Table(_) = value.node {
        *value = Tree::list(vec![value.clone()], value.span.clone());
    }
    let fine = matches!(&value.node, Node::List(items)
        if items.iter().all(|item| matches!(item.node, Node::Table(_))));
    if !fine {
        let text = format!("must be a list of tables, found {}", value.kind());
        let span = value.span.clone();
        problems.error(&format!("{path}.{key}"), &span, text, None);
        map.remove(key);
    }
    fine
}

/// `"8080"` becomes 8080, and a fraction is cut off; only in services (T-25).
fn text_to_integer(map: &mut Map, key: &str, path: &str, problems: &mut Problems<'_>) {
    let Some(value) = map.get_mut(key) else { return };
    match &value.node {
        Node::Float(number) => value.node = Node::Integer(*number as i64),
        Node::Text(text) => match text.parse() {
            Ok(number) => value.node = Node::Integer(number),
            Err(_) => {
                let message = format!("can not convert '{text}' to a port");
                let remedy = Some(format!("write {key} = 8080"));
                problems.error(&format!("{path}.{key}"), &value.span.clone(), message, remedy);
                map.remove(key);
            }
        },
        _ => {}
    }
}

fn number_to_text(map: &mut Map, key: &str) {
    if let Some(value) = map.get_mut(key)
        && let Node::Integer(_) | Node::Float(_) = value.node
    {
        scalar_to_text(value);
    }
}

fn scalar_to_text(value: &mut Tree) {
    if !matches!(value.node, Node::List(_) | Node::Table(_)) {
        value.node = Node::Text(gotext::print(&value.node));
    }
}

fn each_table(map: &mut Map, key: &str, mut act: impl FnMut(&mut Map)) {
    each_table_at(map, key, "", |table, _| act(table));
}

fn each_table_at(map: &mut Map, key: &str, path: &str, mut act: impl FnMut(&mut Map, &str)) {
    let Some(Tree { node: Node::List(items), .. }) = map.get_mut(key) else { return };
    for (index, item) in items.iter_mut().enumerate() {
        if let Node::Table(table) = &mut item.node {
            act(table, &format!("{path}.{key}[{index}]"));
        }
    }
}

fn as_table(tree: Tree) -> Option<Map> {
    match tree.node {
        Node::Table(table) => Some(table),
        _ => None,
    }
}

fn made(key: &str, value: Tree) -> Entry {
    Entry { key: key.to_owned(), key_span: value.span.clone(), value }
}

fn example(form: &str) -> Option<String> {
    Some(format!("write {form}"))
}
