//! Where a request says that it wants to go: to a Machine, to regions (PX-30..33, PX-36, PX-43).
//!
//! An [`Aim`] is a list of wishes, best first; [`Aim::targets`] turns it into what is tried, in order. Force
//! wins over prefer, a Machine over regions (PX-36).

use crate::ids::{MachineId, Region};

/// Areas looked at in one list; more than any list has that people write.
pub const AREAS_MAX: usize = 16;

/// Whether anything else will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Must {
    /// Anything that matches the rest, if need be.
    Prefer,
    /// Nothing else.
    Force,
}

/// A part of the world (PX-43).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// One region.
    Region(Region),
    /// The regions of an alias. A region that Fly does not have is in none but `any`.
    Alias(&'static [&'static str]),
    /// Everywhere.
    Any,
}

const APAC: &[&str] = &["bom", "hkg", "maa", "nrt", "sin", "syd"];
const EU: &[&str] = &["ams", "arn", "cdg", "fra", "lhr", "mad", "otp", "waw"];
const NA: &[&str] = &[
    "atl", "bos", "den", "dfw", "ewr", "gdl", "iad", "lax", "mia", "ord", "phx", "qro", "sea",
    "sjc", "yul", "yyz",
];
const SA: &[&str] = &["bog", "eze", "gig", "gru", "scl"];
const US: &[&str] =
    &["atl", "bos", "den", "dfw", "ewr", "iad", "lax", "mia", "ord", "phx", "sea", "sjc"];

impl Area {
    /// Reads a region code or an alias; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "any" => Self::Any,
            "apac" => Self::Alias(APAC),
            "eu" => Self::Alias(EU),
            "na" => Self::Alias(NA),
            "sa" => Self::Alias(SA),
            "us" | "usa" => Self::Alias(US),
            code => Self::Region(code.parse().ok()?),
        })
    }

    /// Reads a comma list, at most [`AREAS_MAX`] of it; what is no region is left out: nothing can be there.
    pub fn parse_list(text: &str) -> Vec<Self> {
        let items = text.split(',').take(AREAS_MAX);
        items.filter_map(|item| Self::parse(item.trim().to_ascii_lowercase().as_str())).collect()
    }

    /// Whether it has this region.
    pub fn has(self, region: Region) -> bool {
        match self {
            Self::Region(only) => only == region,
            Self::Alias(regions) => regions.contains(&region.as_str()),
            Self::Any => true,
        }
    }
}

/// Which Machines are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// This one.
    Machine(MachineId),
    /// Those in a part of the world.
    Area(Area),
    /// All.
    All,
}

/// Which Machines may take a request now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// These.
    pub among: Among,
    /// But not this one (`elsewhere`, PX-41).
    pub except: Option<MachineId>,
}

impl Target {
    /// Whether a Machine is meant.
    pub fn allows(self, machine: MachineId, region: Region) -> bool {
        let meant = match self.among {
            Among::Machine(only) => only == machine,
            Among::Area(area) => area.has(region),
            Among::All => true,
        };
        meant && self.except != Some(machine)
    }
}

/// What a request or a replay says about where it goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aim {
    /// A Machine by its ID; `None` inside: the text is the ID of no Machine.
    pub machine: Option<(Option<MachineId>, Must)>,
    /// Regions, best first.
    pub areas: Option<(Vec<Area>, Must)>,
    /// Not this Machine.
    pub except: Option<MachineId>,
}

impl Aim {
    /// At this Machine.
    pub fn at(machine: MachineId, must: Must) -> Self {
        Self { machine: Some((Some(machine), must)), ..Self::default() }
    }

    /// What to try, in this order; nothing is left to try after the last one.
    pub fn targets(&self) -> Vec<Target> {
        let mut among = Vec::new();
        if let Some((machine, must)) = self.machine {
            among.extend(machine.map(Among::Machine));
            if must == Must::Force {
                return self.without_except(among);
            }
        }
        match &self.areas {
            Some((areas, must)) => {
                among.extend(areas.iter().copied().map(Among::Area));
                if *must == Must::Prefer {
                    among.push(Among::All);
                }
            }
            None => among.push(Among::All),
        }
        self.without_except(among)
    }

    fn without_except(&self, among: Vec<Among>) -> Vec<Target> {
        among.into_iter().map(|among| Target { among, except: self.except }).collect()
    }

    /// The Machine without which it is of no use.
    pub fn forced(&self) -> Option<Option<MachineId>> {
        self.machine.filter(|(_, must)| *must == Must::Force).map(|(machine, _)| machine)
    }

    /// The Machine that should take it, if another one may too.
    pub fn preferred(&self) -> Option<Option<MachineId>> {
        self.machine.filter(|(_, must)| *must == Must::Prefer).map(|(machine, _)| machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(n: u64) -> MachineId {
        MachineId::from_low_bits(n)
    }

    fn among(aim: &Aim) -> Vec<Among> {
        aim.targets().into_iter().map(|target| target.among).collect()
    }

    fn areas(text: &str, must: Must) -> Option<(Vec<Area>, Must)> {
        Some((Area::parse_list(text), must))
    }

    #[test]
    fn lists_of_regions_are_read_in_order_and_bounded() {
        let fra: Region = "fra".parse().expect("a region");
        let list = Area::parse_list(" FRA, eu ,x1,,any,Frankfurt");
        assert_eq!(list, [Area::Region(fra), Area::Alias(EU), Area::Any]);
        let many = Area::parse_list(&"ams,".repeat(10_000));
        assert_eq!(many.len(), AREAS_MAX);
        assert_eq!(Area::parse_list("\u{0}\r\n,\u{e9}\u{e9}\u{e9}, a b"), []);
    }

    #[test]
    fn an_alias_has_the_regions_of_its_part_of_the_world() {
        let has = |alias: &str, region: &str| {
            Area::parse(alias).expect(alias).has(region.parse().expect(region))
        };
        for (alias, inside, outside) in [
            ("eu", "fra", "iad"),
            ("na", "yyz", "gru"),
            ("us", "iad", "yyz"),
            ("usa", "sjc", "ams"),
            ("sa", "gru", "iad"),
            ("apac", "syd", "fra"),
        ] {
            assert!(has(alias, inside) && !has(alias, outside), "{alias}");
        }
        assert!(has("any", "lcl") && !has("eu", "lcl"));
    }

    #[test]
    fn force_wins_over_prefer_and_a_machine_over_regions() {
        let forced = Aim { areas: areas("ams", Must::Force), ..Aim::at(machine(1), Must::Force) };
        assert_eq!(among(&forced), [Among::Machine(machine(1))]);
        let preferred =
            Aim { areas: areas("any", Must::Force), ..Aim::at(machine(1), Must::Prefer) };
        assert_eq!(among(&preferred), [Among::Machine(machine(1)), Among::Area(Area::Any)]);
        let regions = Aim { areas: areas("any,nowhere", Must::Prefer), ..Aim::default() };
        assert_eq!(among(&regions), [Among::Area(Area::Any), Among::All]);
        assert_eq!(among(&Aim { areas: areas("", Must::Force), ..Aim::default() }), []);
    }

    #[test]
    fn what_is_excluded_is_excluded_everywhere() {
        let aim = Aim { except: Some(machine(1)), ..Aim::at(machine(1), Must::Prefer) };
        for target in aim.targets() {
            assert!(!target.allows(machine(1), Region::LOCAL), "{target:?}");
        }
    }
}
