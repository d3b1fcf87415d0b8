//! Which tokens are instruction, documents and query, and what follows from that: the mask, positions,
//! signal tokens.

use std::ops::Range;

use attn_core::plan::{Entries, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::{Error, Result};
use ndarray::{Array2, ArrayView3};

use crate::QueryOffset;

/// Tokens of a sequence that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Segment {
    /// First token.
    pub start: usize,
    /// Number of tokens; may be 0.
    pub len: usize,
}

impl Segment {
    /// The tokens.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// The segments of the prompts of a batch. Segment 0 of a prompt is the instruction, the last one the query,
/// those between them are documents. A prompt of one segment is an instruction alone.
///
/// Token `i` attends to token `j <= i` of its prompt if `j` is in the same segment; if `i` is in a document and
/// `j` in the instruction; or if `i` is in the query segment ([`Segments::allows`]). Tokens between segments, and
/// behind the last one of a shorter prompt, are padding: they attend to nothing, and nothing to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    prompts: Vec<Vec<Segment>>,
    tokens: usize,
}

/// Tokens of a sequence are fewer.
const MAX_TOKENS: usize = 1 << 29;

/// Queries with the keys of them all.
type Group = (Range<usize>, Vec<Range<usize>>);

impl Segments {
    /// One prompt of segments of these lengths, one behind the other.
    ///
    /// # Errors
    /// As [`Segments::packed`].
    pub fn one(lengths: &[usize]) -> Result<Segments> {
        Segments::packed(&[lengths])
    }

    /// A batch of prompts, each of segments of its own lengths, one behind the other from token 0 on. The
    /// tensors have as many tokens as the longest prompt.
    ///
    /// # Errors
    /// [`Error::Data`] for a prompt without segments, or of 2^29 tokens and more.
    pub fn packed<L: AsRef<[usize]>>(lengths: &[L]) -> Result<Segments> {
        let mut prompts = Vec::with_capacity(lengths.len());
        for lengths in lengths {
            let mut start = 0usize;
            let mut prompt = Vec::new();
            for &len in lengths.as_ref() {
                prompt.push(Segment { start, len });
                start = start.saturating_add(len);
            }
            prompts.push(prompt);
        }
        Segments::checked(prompts, 0)
    }

    /// A batch in the authors' layout: every segment filled up on the left to one length. `valid`
    /// `[batch, segments, length]` says which tokens are real; tensors have `segments * length` tokens.
    ///
    /// # Errors
    /// [`Error::Data`] for a token that is not real behind one that is; as [`Segments::packed`].
    pub fn padded(valid: ArrayView3<'_, bool>) -> Result<Segments> {
        let (_, count, length) = valid.dim();
        let mut prompts = Vec::new();
        for prompt in valid.outer_iter() {
            let mut own = Vec::new();
            for (number, tokens) in prompt.outer_iter().enumerate() {
                let len = tokens.iter().filter(|&&real| real).count();
                let pads = length - len;
                if !tokens.iter().enumerate().all(|(at, &real)| real == (at >= pads)) {
                    let expected = "padding on the left of a segment only";
                    return Err(Error::data("valid", expected, format!("segment {number}")));
                }
                own.push(Segment { start: number.saturating_mul(length) + pads, len });
            }
            prompts.push(own);
        }
        Segments::checked(prompts, count.saturating_mul(length))
    }

    fn checked(prompts: Vec<Vec<Segment>>, tokens: usize) -> Result<Segments> {
        let mut most = tokens;
        for (number, prompt) in prompts.iter().enumerate() {
            let Some(last) = prompt.last() else {
                let got = format!("prompt {number} without any");
                return Err(Error::data("segments", "at least one segment", got));
            };
            most = most.max(last.start.saturating_add(last.len));
        }
        if most >= MAX_TOKENS {
            return Err(Error::data("segments", "fewer than 2^29 tokens", most));
        }
        Ok(Segments { prompts, tokens: most })
    }

    /// Number of prompts.
    pub fn batch(&self) -> usize {
        self.prompts.len()
    }

    /// Tokens of a sequence: those of the longest prompt, or of the padded form.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The segments of every prompt.
    pub fn prompts(&self) -> &[Vec<Segment>] {
        &self.prompts
    }

    /// The documents of a prompt; none where there is no such prompt.
    pub fn documents(&self, prompt: usize) -> &[Segment] {
        let all = self.prompts.get(prompt).map_or(&[][..], Vec::as_slice);
        all.get(1..all.len().saturating_sub(1)).unwrap_or_default()
    }

    /// Documents of the prompt that has most: the columns of scores.
    pub fn most_documents(&self) -> usize {
        (0..self.batch()).map(|prompt| self.documents(prompt).len()).max().unwrap_or(0)
    }

    /// Number of the segment of a token; `None` for padding.
    pub fn segment_of(&self, prompt: usize, token: usize) -> Option<usize> {
        let all = self.prompts.get(prompt)?;
        all.iter().position(|segment| segment.range().contains(&token))
    }

    /// Whether token `query` attends to token `key`: the mask, as the paper states it.
    pub fn allows(&self, prompt: usize, query: usize, key: usize) -> bool {
        let of = |token| self.segment_of(prompt, token);
        let (Some(q), Some(k)) = (of(query), of(key)) else { return false };
        let last = self.prompts.get(prompt).map_or(0, |all| all.len().saturating_sub(1));
        (q == k && key <= query) || (q != k && q < last && k == 0) || (q == last && k < last)
    }

    /// Pairs of a query and a key that attention computes, of one head, of all prompts.
    pub fn pairs(&self) -> u64 {
        let triangle = |len: usize| (len as u64) * (len as u64 + 1) / 2;
        let of = |prompt: &Vec<Segment>| -> u64 {
            let (mut pairs, mut before) = (0, 0);
            for (number, segment) in prompt.iter().enumerate() {
                let seen = match number {
                    0 => 0,
                    _ if number + 1 == prompt.len() => before,
                    _ => prompt[0].len as u64,
                };
                pairs += triangle(segment.len) + seen * segment.len as u64;
                before += segment.len as u64;
            }
            pairs
        };
        self.prompts.iter().map(of).sum()
    }

    /// Position of every token `[batch, tokens]`: the instruction from 0, every document from the end of the
    /// instruction, the query segment from `offset`. Padding has position 0.
    ///
    /// # Errors
    /// [`Error::Config`] for an offset in front of the end of the longest document, or one so large that
    /// positions reach 2^31.
    pub fn positions(&self, offset: QueryOffset) -> Result<Array2<u32>> {
        let mut positions = Array2::zeros((self.batch(), self.tokens));
        for (number, prompt) in self.prompts.iter().enumerate() {
            let begins = starts(prompt, offset)?;
            for (segment, begin) in prompt.iter().zip(begins) {
                for (step, token) in segment.range().enumerate() {
                    positions[[number, token]] = begin + step as u32;
                }
            }
        }
        Ok(positions)
    }

    /// The last `count` tokens of every prompt, its signal tokens: `[batch, count]`.
    ///
    /// # Errors
    /// [`Error::Data`] for a prompt whose last segment is shorter.
    pub fn signal_rows(&self, count: usize) -> Result<Array2<usize>> {
        let mut rows = Array2::zeros((self.batch(), count));
        for (number, prompt) in self.prompts.iter().enumerate() {
            let last = prompt.last().copied().unwrap_or_default();
            let Some(before) = last.len.checked_sub(count) else {
                let expected = format!("at least {count} tokens in the query segment");
                return Err(Error::data("segments", expected, last.len));
            };
            for step in 0..count {
                rows[[number, step]] = last.start + before + step;
            }
        }
        Ok(rows)
    }

    /// The mask as a plan of ranges: documents see the instruction and themselves, the query segment sees
    /// everything before it.
    ///
    /// # Errors
    /// As [`SparsePlan::check`], for numbers of heads that do not fit.
    pub fn plan(&self, heads: usize, heads_kv: usize) -> Result<SparsePlan> {
        let shape = PlanShape::new(self.batch(), heads, heads_kv, self.tokens, self.tokens);
        plan_of(shape, (0..self.batch()).map(|prompt| self.groups(prompt, 0..self.tokens)))
    }

    /// The mask of some tokens of one prompt, with the keys up to the last of them: what a pass over a part of a
    /// prompt computes. Tokens behind the last segment belong to it.
    ///
    /// # Errors
    /// As [`Segments::plan`], and [`Error::Data`] for a prompt that there is not.
    pub fn plan_part(
        &self,
        prompt: usize,
        queries: Range<usize>,
        heads: usize,
        heads_kv: usize,
    ) -> Result<SparsePlan> {
        let Some(own) = self.prompts.get(prompt) else {
            let expected = format!("prompts below {}", self.batch());
            return Err(Error::data("prompt", expected, prompt));
        };
        let mut own = own.clone();
        if let Some(last) = own.last_mut() {
            last.len = last.len.max(queries.end.saturating_sub(last.start));
        }
        let one = Segments { prompts: vec![own], tokens: queries.end.max(self.tokens) };
        let shape = PlanShape::new(1, heads, heads_kv, queries.len(), queries.end);
        plan_of(shape, [one.groups(0, queries)])
    }

    /// The groups of the tokens `queries`, which are counted from the first of them.
    fn groups(&self, prompt: usize, queries: Range<usize>) -> Vec<Group> {
        let all = self.prompts.get(prompt).map_or(&[][..], Vec::as_slice);
        let mut groups = Vec::new();
        for (number, segment) in all.iter().enumerate() {
            let own = segment.start.max(queries.start)..segment.range().end.min(queries.end);
            if own.is_empty() {
                continue;
            }
            let before = match number {
                0 => 0,
                _ if number + 1 == all.len() => number,
                _ => 1,
            };
            let mut keys: Vec<_> = all[..before].iter().map(Segment::range).collect();
            keys.push(segment.start..own.end);
            groups.push((own.start - queries.start..own.end - queries.start, keys));
        }
        groups
    }
}

/// Where the positions of every segment begin.
pub(crate) fn starts(prompt: &[Segment], offset: QueryOffset) -> Result<Vec<u32>> {
    let instruction = prompt.first().map_or(0, |segment| segment.len);
    let documents = prompt.get(1..prompt.len().saturating_sub(1)).unwrap_or_default();
    let longest = documents.iter().map(|segment| segment.len).max().unwrap_or(0);
    let least = instruction + longest;
    let query = match offset {
        QueryOffset::At(offset) => offset as usize,
        QueryOffset::AfterLongest => least,
    };
    if query < least {
        let expected = format!("at least {least}, behind the longest document");
        return Err(Error::config("query_offset", expected, query));
    }
    let last = prompt.last().map_or(0, |segment| segment.len);
    if query.saturating_add(last) > 1 << 31 {
        return Err(Error::config("query_offset", "positions below 2^31", query));
    }
    let count = prompt.len();
    let begin = |number: usize| match number {
        0 => 0,
        _ if number + 1 == count => query as u32,
        _ => instruction as u32,
    };
    Ok((0..count).map(begin).collect())
}

fn plan_of(shape: PlanShape, planes: impl IntoIterator<Item = Vec<Group>>) -> Result<SparsePlan> {
    let (mut plane_ptr, mut row_ptr) = (vec![0], vec![0]);
    let (mut q_start, mut q_len, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
    for groups in planes {
        for (queries, keys) in groups {
            q_start.push(queries.start as u32);
            q_len.push(queries.len() as u32);
            let full = keys.iter().filter(|keys| !keys.is_empty());
            ranges.extend(full.map(|keys| [keys.start as u32, keys.len() as u32]));
            row_ptr.push(ranges.len() as u32);
        }
        plane_ptr.push(q_start.len() as u32);
    }
    let rows = Rows::Ranges { plane_ptr, q_start, q_len };
    let part = Part::new(rows, Entries::Ranges { row_ptr, ranges });
    // Without heads there are no planes.
    let part = if shape.heads == 0 { Vec::new() } else { vec![part] };
    SparsePlan::new(shape, Share::AllHeads, true, part).canonicalise()
}
