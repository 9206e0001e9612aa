// Answers a prompt, about a picture or none, with a variant of an image model: greedy, on the CPU, without Python.
//
//   node answer.mjs DIR --prompt "What colour is the circle?" [--image photo.png] [--max-new-tokens 64] [--threads 0]
//
// The text goes to stdout, what can't be done to stderr: the rule, the numbers, the way out. All that is particular to
// the variant is read from its io.json. d width, t kept image features.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Tokenizer } from '@huggingface/tokenizers';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import sharp from 'sharp';

class Refused extends Error {}
const empty = (shape) => new Tensor('float32', new Float32Array(0), shape);
const FORMS = ['cpu', 'int4', 'int8']; // cuda's experts have no kernels on a CPU

function readJson(directory, name) {
  try {
    return JSON.parse(readFileSync(join(directory, name), 'utf8'));
  } catch (error) {
    throw new Refused(`A variant must have an intact ${name}: ${directory}: ${error.message}. Export it again.`);
  }
}

class Variant {
  constructor(directory, threads) {
    this.directory = directory;
    this.threads = threads;
    this.io = readJson(directory, 'io.json');
    if (!FORMS.includes(this.io.form)) {
      throw new Refused(`The form must be one of ${FORMS.join(', ')} on a CPU, it is ${this.io.form}. Export another.`);
    }
    if (!this.io.graphs['preprocess.onnx']) {
      throw new Refused(`A variant must have preprocess.onnx, of an image model: ${directory} has none. Export again.`);
    }
    this.tokenizer = new Tokenizer(readJson(directory, 'tokenizer.json'), readJson(directory, 'tokenizer_config.json'));
  }

  // Node's onnxruntime takes no enable_mem_reuse of session_attributes: graphs open later, results are the same.
  open(name) {
    const { session_options: common, vision_session_options: vision } = this.io;
    const extra = /^(vision|preprocess)/.test(name) ? vision : common;
    const options = { executionProviders: ['cpu'], extra, intraOpNumThreads: this.threads };
    return InferenceSession.create(join(this.directory, name), options);
  }

  // One call of a graph that isn't needed again.
  async once(name, feed) {
    const session = await this.open(name);
    const found = await session.run(feed);
    await session.release();
    return found;
  }

  // uint8 [height, width, 3]: RGB, upright, colours as they are stored; refused by io.json's rule.
  async pixels(file) {
    const upright = sharp(file, { ignoreIcc: true }).autoOrient().removeAlpha().toColourspace('srgb');
    const decoded = upright.raw({ depth: 'uchar' }).toBuffer({ resolveWithObject: true });
    const { data, info } = await decoded.catch((error) => {
      throw new Refused(`The image must be whole and readable: ${file}: ${error.message}. Convert it.`);
    });
    const { least_side: least, most_side: most, aspect_below: aspect } = this.io.picture;
    const [short, long] = [info.width, info.height].sort((a, b) => a - b);
    const size = `${file} has ${info.width}×${info.height}`;
    if (short < least || long > most) throw new Refused(`A side has ${least} to ${most} pixels: ${size}. Scale it.`);
    if (aspect !== null && long >= aspect * short) {
      throw new Refused(`The longer side must be less than ${aspect} times the shorter one: ${size}. Crop it.`);
    }
    return new Tensor('uint8', data, [info.height, info.width, 3]);
  }

  // -> ids of the prompt, and float32 [t, d] features of its picture ([0, d] without one).
  async prompt(text, file) {
    const { prompt, special_ids: ids, graphs } = this.io;
    const { add_special_tokens } = prompt;
    const words = this.tokenizer.encode(prompt.before + text + prompt.after, { add_special_tokens }).ids;
    const own = [ids.image_start, ids.image_end, ids.image_patch, ids.image_column].find((id) => words.includes(id));
    if (own !== undefined) {
      const token = this.tokenizer.id_to_token(own);
      throw new Refused(`A prompt must not contain the image's own tokens, such as ${token}. Leave them out.`);
    }
    const parts = { begin: [prompt.begin], image: [], text: words };
    let features = empty([0, graphs['vision.onnx'].outputs[0].shape[1]]);
    if (file !== undefined) {
      const { image_ids: stream, ...cut } = await this.once('preprocess.onnx', { image: await this.pixels(file) });
      parts.image = Array.from(stream.data, Number);
      features = (await this.once('vision.onnx', cut)).image_features;
    }
    return { ids: prompt.order.flatMap((part) => parts[part]), features };
  }

  // The ids of the answer, without the one that ends it.
  async generate({ ids, features }, most) {
    const { prompt, graphs, max_positions: positions } = this.io;
    if (ids.length >= positions) {
      throw new Refused(`A prompt must leave one of ${positions} positions, it has ${ids.length} tokens. Shorten it.`);
    }
    const [embedding, text] = [await this.open('embedding.onnx'), await this.open('text.onnx')];
    const cache = {};
    for (const { name, shape } of graphs['text.onnx'].inputs) {
      if (name.startsWith('past_key_values.')) cache[name] = empty([1, shape[1], 0, shape[3]]);
    }
    const found = [];
    let next = ids;
    for (let length = ids.length; found.length < most && length < positions; length += 1) {
      const input_ids = new Tensor('int64', BigInt64Array.from(next, BigInt), [1, next.length]);
      const image_features = found.length ? empty([0, features.dims[1]]) : features; // they belong to the prompt
      const { inputs_embeds } = await embedding.run({ input_ids, image_features });
      const attention_mask = new Tensor('int64', new BigInt64Array(length).fill(1n), [1, length]);
      const { logits, ...present } = await text.run({ inputs_embeds, attention_mask, ...cache });
      const last = logits.data.subarray(-logits.dims[2]);
      const token = last.indexOf(last.reduce((a, b) => Math.max(a, b)));
      if (prompt.end.includes(token)) break;
      found.push(token);
      next = [token];
      for (const name in present) cache[name.replace('present.', 'past_key_values.')] = present[name];
    }
    return found;
  }

  text(found) {
    if (!found.length) return ''; // the tokenizer refuses to decode nothing
    return this.tokenizer.decode(found, { skip_special_tokens: true, clean_up_tokenization_spaces: false }).trim();
  }
}

function whole(name, value, least) {
  if (!/^\d+$/.test(value) || Number(value) < least) {
    throw new Refused(`--${name} must be a whole number from ${least} on, got ${value}. Give another.`);
  }
  return Number(value);
}

const word = (value) => ({ type: 'string', default: value });
const options = { prompt: word(), image: word(), 'max-new-tokens': word('64'), threads: word('0') };
try {
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  if (positionals.length !== 1 || values.prompt === undefined) {
    throw new Refused('One directory and --prompt must be given: node answer.mjs DIR --prompt "..." [--image FILE]');
  }
  const most = whole('max-new-tokens', values['max-new-tokens'], 1);
  const variant = new Variant(positionals[0], whole('threads', values.threads, 0));
  console.log(variant.text(await variant.generate(await variant.prompt(values.prompt, values.image), most)));
} catch (error) {
  console.error(error instanceof Refused || error.code?.startsWith('ERR_PARSE_ARGS') ? error.message : error);
  process.exitCode = 1;
}
