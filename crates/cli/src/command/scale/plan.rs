//! Which Machines a `scale count` makes and destroys, as flyctl decides it. Pure.

use std::collections::BTreeMap;

/// How many a group shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// So many.
    Absolute(i64),
    /// So many more, or fewer.
    Relative(i64),
}

impl Wanted {
    /// The number for a group that has so many.
    pub(super) fn total(self, present: usize) -> usize {
        let total = match self {
            Self::Absolute(count) => count,
            Self::Relative(change) => (present as i64).saturating_add(change),
        };
        usize::try_from(total.max(0)).unwrap_or(usize::MAX)
    }
}

/// More than any host runs; a mistyped number must not make Machines for hours.
pub(super) const MACHINES_MAX: usize = 1_000;

/// Reads `3`, `+1`, `-1` for the default group, or `web=3 worker=+1`.
///
/// # Errors
/// In flyctl's words.
pub(super) fn parse(args: &[String], default: &str) -> Result<BTreeMap<String, Wanted>, String> {
    if let [only] = args
        && let Ok(wanted) = number(only)
    {
        return Ok([(default.to_owned(), wanted)].into());
    }
    let mut groups = BTreeMap::new();
    for arg in args {
        let (group, count) = match arg.split('=').collect::<Vec<_>>()[..] {
            [group, count] => (group, count),
            _ => return Err(format!("'{arg}' is not a valid process=count option")),
        };
        groups.insert(group.to_owned(), number(count)?);
    }
    Ok(groups)
}

fn number(text: &str) -> Result<Wanted, String> {
    let number: i64 =
        text.parse().map_err(|_| format!("strconv.Atoi: parsing {text:?}: invalid syntax"))?;
    match text.starts_with(['+', '-']) {
        true if number == 0 => Err(format!("invalid relative scale count: {text}")),
        true => Ok(Wanted::Relative(number)),
        false => Ok(Wanted::Absolute(number)),
    }
}

/// Changes by region that lead to the total. `max_per_region` below 0 is no limit. The first regions get more first;
/// the others lose first, because the primary one tends to be the first.
///
/// # Errors
/// When so many do not fit.
pub(super) fn converge(
    total: usize,
    present: &BTreeMap<String, usize>,
    regions: &[String],
    max_per_region: i64,
) -> Result<BTreeMap<String, i64>, String> {
    let mut unique: Vec<&String> = Vec::new();
    regions.iter().for_each(|region| {
        if !unique.contains(&region) {
            unique.push(region);
        }
    });
    let limit = usize::try_from(max_per_region).ok();
    if limit.is_some_and(|limit| unique.len().saturating_mul(limit) < total) || unique.is_empty() {
        return Err("the number of regions by the maximum machines per region is fewer than the \
                    expected total"
            .to_owned());
    }
    let has = |region: &String| present.get(region).copied().unwrap_or(0);
    let mut counts: Vec<usize> = unique
        .iter()
        .map(|region| limit.map_or(has(region), |most| has(region).min(most)))
        .collect();
    let mut at = 0;
    while counts.iter().sum::<usize>() < total {
        let index = at % counts.len();
        if limit.is_none_or(|most| counts[index] < most) {
            counts[index] += 1;
        }
        at += 1;
    }
    let mut at = 1;
    while total < counts.iter().sum() {
        let index = at % counts.len();
        counts[index] = counts[index].saturating_sub(1);
        at += 1;
    }
    let change = |(region, count): (&&String, &usize)| {
        ((*region).clone(), *count as i64 - has(region) as i64)
    };
    Ok(unique.iter().zip(&counts).map(change).filter(|(_, change)| *change != 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_is_no_count_is_refused_in_flyctls_words() {
        let refused = |text: &str| parse(&args(text), "app").expect_err(text);
        assert_eq!(refused("two"), "'two' is not a valid process=count option");
        assert_eq!(refused("+0"), "'+0' is not a valid process=count option");
        assert_eq!(refused("2 3"), "'2' is not a valid process=count option");
        assert_eq!(refused("a=b=3"), "'a=b=3' is not a valid process=count option");
        assert_eq!(refused("web=+0"), "invalid relative scale count: +0");
        assert_eq!(refused("web=x"), "strconv.Atoi: parsing \"x\": invalid syntax");
    }

    #[test]
    fn one_number_is_the_default_groups_and_several_are_named() {
        use Wanted::{Absolute, Relative};
        let parsed = |text: &str| parse(&args(text), "app").expect(text);
        assert_eq!(parsed("3"), [("app".to_owned(), Absolute(3))].into());
        assert_eq!(parsed("-2"), [("app".to_owned(), Relative(-2))].into());
        let both = [("web".to_owned(), Absolute(2)), ("worker".to_owned(), Relative(1))];
        assert_eq!(parsed("web=2 worker=+1"), both.into());
        assert_eq!((Relative(-5).total(2), Absolute(-1).total(9), Relative(1).total(2)), (0, 0, 3));
    }

    fn check(
        total: usize,
        present: &[(&str, usize)],
        regions: &str,
        most: i64,
        changes: &[(&str, i64)],
    ) {
        let present =
            present.iter().map(|(region, count)| ((*region).to_owned(), *count)).collect();
        let planned = converge(total, &present, &args(regions), most).expect("it fits");
        let changes: BTreeMap<_, _> =
            changes.iter().map(|(region, change)| ((*region).to_owned(), *change)).collect();
        assert_eq!(planned, changes, "{total} of {present:?} in {regions}, at most {most}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(converge(3, &BTreeMap::new(), &args("fra"), 2).is_err());
        assert!(converge(1, &BTreeMap::new(), &[], -1).is_err());
    }

    #[test]
    fn regions_get_more_in_turn_and_the_first_loses_last() {
        check(3, &[("fra", 1)], "fra", -1, &[("fra", 2)]);
        check(2, &[("fra", 2)], "fra", -1, &[]);
        check(0, &[("fra", 2)], "fra", -1, &[("fra", -2)]);
        check(3, &[], "fra mia", -1, &[("fra", 2), ("mia", 1)]);
        check(3, &[("fra", 2), ("mia", 2)], "fra mia", -1, &[("mia", -1)]);
        check(1, &[("fra", 2), ("mia", 2)], "fra mia", -1, &[("fra", -1), ("mia", -2)]);
        check(2, &[("fra", 2)], "fra mia fra", 1, &[("fra", -1), ("mia", 1)]);
    }
}
