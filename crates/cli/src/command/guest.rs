//! Sizes of Machines by flags, as flyctl computes and checks them.

use crate::args::Vm;
use crate::failure::{Failure, Outcome};
use crate::flytoml::{memory_mb, preset};
use perch_api::wire::Guest;
use serde_json::{Map, Value};

/// CPUs that Machines of each kind can have, and MB of memory per CPU: steps, at least, at most.
const KINDS: [(&str, &[u32], u32, u32, u32); 2] = [
    ("shared", &[1, 2, 4, 6, 8], 256, 256, 2048),
    ("performance", &[1, 2, 4, 6, 8, 10, 12, 14, 16, 32, 64, 128], 1024, 2048, 8192),
];

/// What the flags make of a size; without one they start from the smallest. What we do not know of it stays.
pub(super) fn with_flags(old: Option<&Value>, flags: &Vm) -> Outcome<Value> {
    check_flags(flags)?;
    let known = old.and_then(Value::as_object);
    let mut guest = match known {
        Some(known) => known.clone(),
        None => of(&Guest::default())?,
    };
    if let Some(name) = &flags.vm_size {
        check_name(name)?;
        let preset = preset(name).map_err(Failure::new)?;
        let (cpu_kind, cpus, memory_mb) =
            (preset.cpu_kind.to_owned(), preset.cpus, preset.memory_mb);
        guest.extend(of(&Guest { cpu_kind, cpus, memory_mb })?);
    }
    if let Some(cpus) = flags.vm_cpus {
        guest.insert("cpus".to_owned(), cpus.into());
    }
    if let Some(text) = &flags.vm_memory {
        guest.insert("memory_mb".to_owned(), memory(text)?.into());
    }
    if let Some(kind) = &flags.vm_cpu_kind {
        guest.insert("cpu_kind".to_owned(), kind.as_str().into());
    }
    Ok(Value::Object(guest))
}

fn of(guest: &Guest) -> Outcome<Map<String, Value>> {
    Ok(serde_json::to_value(guest)?.as_object().cloned().unwrap_or_default())
}

fn memory(text: &str) -> Outcome<i64> {
    if text.parse() == Ok(0) {
        return Err(Failure::new("--vm-memory cannot be zero"));
    }
    memory_mb(text).ok_or_else(|| {
        Failure::new(format!("invalid size: '{text}'")).hint("For example `512`, or `1gb`")
    })
}

/// What no size can make right.
pub(super) fn check_flags(flags: &Vm) -> Outcome {
    if let Some(cpus) = flags.vm_cpus.filter(|cpus| *cpus <= 0) {
        return Err(Failure::new(format!("--vm-cpus must be greater than zero, got: {cpus}")));
    }
    if !matches!(flags.vm_cpu_kind.as_deref(), None | Some("shared" | "performance")) {
        return Err(Failure::new("--vm-cpu-kind must be set to 'shared' or 'performance'"));
    }
    Ok(())
}

/// Refuses a name that is no size.
pub(super) fn check_name(name: &str) -> Outcome {
    match preset(name) {
        Ok(_) => Ok(()),
        Err(_) if !name.contains('-') => Err(Failure::new(format!(
            "invalid machine preset requested, '{name}', expected to start with 'shared' or 'performance'"
        ))),
        Err(known) => Err(Failure::new(format!(
            "'{name}' is an invalid machine size, choose one of: [{known}]"
        ))),
    }
}

/// Refuses a size that flyctl gives no Machine by hand.
pub(super) fn check(guest: &Guest) -> Outcome {
    let Guest { cpu_kind, cpus, memory_mb } = guest;
    let failed = |reason: &str, text: String| Err(Failure::new(reason).hint(text));
    let Some((_, counts, step, least, most)) =
        KINDS.iter().find(|kind| kind.0 == cpu_kind.as_str())
    else {
        return failed("invalid CPU kind", format!("The CPU kind given: {cpu_kind}, is not valid"));
    };
    if !counts.contains(cpus) {
        let text = format!("For the CPU kind {cpu_kind}, {cpus} CPUs is not valid");
        return failed("invalid number of CPUs", text);
    }
    let least = least * cpus;
    let most = most * cpus;
    if !memory_mb.is_multiple_of(*step) {
        let text = format!("{memory_mb}MiB of memory is not valid; use a multiple of {step}");
        return failed("invalid memory size", text);
    }
    if *memory_mb < least {
        return failed(
            "memory size for config is too low",
            format!(
                "For {cpu_kind} VMs with {cpus} CPUs, {memory_mb}MiB of memory is too low; use at least {least}"
            ),
        );
    }
    if most < *memory_mb {
        return failed(
            "memory size for config is too high",
            format!(
                "For {cpu_kind} VMs with {cpus} CPUs, {memory_mb}MiB of memory is too high; use at most {most}"
            ),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn guest(cpu_kind: &str, cpus: u32, memory_mb: u32) -> Guest {
        Guest { cpu_kind: cpu_kind.to_owned(), cpus, memory_mb }
    }

    fn flags(size: &str, memory: &str, cpus: i64, kind: &str) -> Vm {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Vm {
            vm_size: given(size),
            vm_memory: given(memory),
            vm_cpus: Some(cpus).filter(|cpus| *cpus != 0),
            vm_cpu_kind: given(kind),
        }
    }

    #[test]
    fn sizes_that_flyctl_refuses_are_refused_with_the_reason() {
        let reason = |it: Guest| check(&it).expect_err("refused").message();
        assert_eq!(reason(guest("fast", 1, 256)), "invalid CPU kind");
        assert_eq!(reason(guest("shared", 3, 768)), "invalid number of CPUs");
        assert_eq!(reason(guest("shared", 1, 300)), "invalid memory size");
        assert_eq!(reason(guest("shared", 2, 256)), "memory size for config is too low");
        assert_eq!(reason(guest("shared", 1, 4096)), "memory size for config is too high");
        check(&guest("performance", 1, 8192)).expect("it can be");
    }

    #[test]
    fn flags_that_are_none_are_refused_with_flyctls_words() {
        let reason = |it: Vm| with_flags(None, &it).expect_err("refused").message();
        assert!(reason(flags("big", "", 0, "")).contains("expected to start with 'shared'"));
        assert!(
            reason(flags("shared-cpu-3x", "", 0, "")).contains("choose one of: [shared-cpu-1x")
        );
        assert_eq!(reason(flags("", "", -1, "")), "--vm-cpus must be greater than zero, got: -1");
        assert_eq!(reason(flags("", "0", 0, "")), "--vm-memory cannot be zero");
        assert_eq!(reason(flags("", "much", 0, "")), "invalid size: 'much'");
        assert!(reason(flags("", "", 0, "fast")).contains("'shared' or 'performance'"));
    }

    #[test]
    fn each_flag_changes_its_part_after_the_named_size() {
        let old = json!({"cpu_kind": "shared", "cpus": 2, "memory_mb": 512, "kernel_args": ["x"]});
        let with = |old: Option<&Value>, it: Vm| with_flags(old, &it).expect("a size");
        assert_eq!(
            with(Some(&old), flags("performance-2x", "8gb", 0, "")),
            json!({"cpu_kind": "performance", "cpus": 2, "memory_mb": 8192, "kernel_args": ["x"]})
        );
        assert_eq!(
            with(None, flags("", "", 4, "performance")),
            json!({"cpu_kind": "performance", "cpus": 4, "memory_mb": 256})
        );
        assert_eq!(with(Some(&old), flags("", "", 0, "")), old);
    }
}
