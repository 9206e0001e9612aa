// Greedy generation with transformers.js, run by node: usage
//   generate.mjs ENVIRONMENT DIRECTORY '{"ids": [...], "count": 24, "options": {...}, "model_type": "olmo"}'
// -> {"ids": [...]} on stdout, the new ids alone. ENVIRONMENT holds node_modules; `model_type` replaces the config's.
import { createRequire } from 'node:module';
import { resolve, dirname, basename } from 'node:path';

const [environment, directory, given] = process.argv.slice(2);
const { AutoModelForCausalLM, PretrainedConfig, Tensor, env } = createRequire(resolve(environment, 'package.json'))(
  '@huggingface/transformers',
);
const { ids, count, options = {}, model_type } = JSON.parse(given);
env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(directory));
const name = basename(resolve(directory));
if (model_type) {
  const { readFileSync } = await import('node:fs');
  const config = JSON.parse(readFileSync(resolve(directory, 'config.json'), 'utf8'));
  options.config = new PretrainedConfig({ ...config, model_type });
}
const model = await AutoModelForCausalLM.from_pretrained(name, options);
const row = (values) => new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
const found = await model.generate({
  input_ids: row(ids),
  attention_mask: row(ids.map(() => 1)),
  max_new_tokens: count,
  do_sample: false,
});
console.log(JSON.stringify({ ids: Array.from(found.data, Number).slice(ids.length) }));
