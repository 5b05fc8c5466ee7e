// What the data source of Grafana does: fills in variables, asks Prometheus, makes data frames of the answers.
import { FieldType, dateTime, toDataFrame } from '@grafana/data';

const POINTS = 300; // of a graph
const MINUTE = 60; // the step of all marks

export function filledIn(text, at) {
  const values = { window: at.window, __range: `${Math.round(at.to - at.from)}s`, job: '.+', instance: '.+', scanner: at.scanner };
  return Object.entries(values).reduce((done, [name, value]) => done.replaceAll(`\${${name}}`, value).replaceAll(`$${name}`, value), text);
}

/** Return the choice of the window that the dashboard has as its default, as Grafana reads it from the answer. */
export async function windowOf(board, at) {
  const variable = board.templating.list.find(({ name }) => name === 'window');
  if (!variable) return {}; // the dashboard of a test
  const { query, regex, current } = variable;
  const found = await get(at, 'query', { query: filledIn(query.match(/^query_result\((.+)\)\s*$/)[1], at), time: at.to });
  const lines = found.map(({ metric, value }) => `{${Object.entries(metric).map(([name, text]) => `${name}="${text}"`).join(',')}} ${value[1]} ${value[0] * 1000}`);
  const choices = lines.map((line) => line.match(new RegExp(regex.slice(1, -1))).groups);
  return choices.find(({ text }) => text === current.text);
}

async function get(at, path, parameters) {
  const response = await fetch(`${at.url}/api/v1/${path}?${new URLSearchParams(parameters)}`);
  const answer = await response.json();
  if (answer.status !== 'success') {
    throw new Error(`${answer.error}: ${parameters.query}`);
  }
  return answer.data.result;
}

export async function ask(target, at) {
  const query = filledIn(target.expr, at);
  if (target.format === 'table') {
    return [tableOf(await get(at, 'query', { query, time: at.to }), target)];
  }
  const found = target.instant
    ? (await get(at, 'query', { query, time: at.to })).map(({ metric, value }) => ({ metric, values: [value] }))
    : await get(at, 'query_range', { query, start: at.from, end: at.to, step: (at.to - at.from) / POINTS });
  return found.map((each) => seriesOf(each, target, at));
}

function seriesOf({ metric, values }, target, at) {
  const format = target.legendFormat === '__auto' ? '' : target.legendFormat;
  const name = format.replace(/{{(\w+)}}/g, (_, label) => metric[label] ?? '') || Object.values(metric).join(' ') || 'Value';
  const found = new Map(values.map(([time, value]) => [Math.round(time * 1000), value === 'NaN' ? null : parseFloat(value)]));
  const step = (at.to - at.from) / POINTS * 1000;
  const times = target.instant ? [...found.keys()] : Array.from({ length: POINTS + 1 }, (_, index) => Math.round(at.from * 1000 + index * step));
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: times },
      { name, type: FieldType.number, values: times.map((time) => found.get(time) ?? null), config: { displayNameFromDS: name } },
    ],
  });
}

function tableOf(found, target) {
  const labels = [...new Set(found.flatMap(({ metric }) => Object.keys(metric)))].sort();
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: found.map(({ value }) => value[0] * 1000) },
      ...labels.map((label) => ({ name: label, type: FieldType.string, values: found.map(({ metric }) => metric[label] ?? '') })),
      { name: target.alone ? 'Value' : `Value #${target.refId}`, type: FieldType.number, values: found.map(({ value }) => parseFloat(value[1])) },
    ],
  });
}

export async function marks(board, at) {
  const asked = board.annotations.list.map(async (mark) => {
    const query = filledIn(mark.expr, at);
    const found = await get(at, 'query_range', { query, start: at.from, end: at.to, step: mark.step });
    const begins = (values) => values.filter(([time], index) => index === 0 || time - values[index - 1][0] > MINUTE);
    return found.flatMap(({ metric, values }) => begins(values).map(([time]) => ({
      colour: mark.iconColor,
      from: time * 1000,
      text: mark.titleFormat.replace(/{{(\w+)}}/g, (_, label) => metric[label] ?? '').trim(),
    })));
  });
  return (await Promise.all(asked)).flat();
}

export function timeRange(at) {
  const [from, to] = [dateTime(at.from * 1000), dateTime(at.to * 1000)];
  return { from, to, raw: { from, to } };
}
