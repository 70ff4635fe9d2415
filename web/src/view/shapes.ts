/** MuJoCo's shapes as three.js meshes. */

import * as THREE from "three";
import type { Drawn } from "../physics/frames";
import { MATERIALS } from "./theme";

/** Return a mesh of the shape at the origin, with MuJoCo's axes; a plain one has fewer faces, no gloss. */
export function meshOf(drawn: Drawn, plain: boolean): THREE.Mesh {
  const mesh = new THREE.Mesh(geometryOf(drawn, plain ? 0.5 : 1), materialOf(drawn, plain));
  const transparent = drawn.rgba[3] < 1 || drawn.name === "target";
  mesh.castShadow = !transparent && drawn.shape !== "plane";
  mesh.receiveShadow = !transparent;
  if (drawn.shape === "ellipsoid") mesh.scale.set(...drawn.size);
  return mesh;
}

function geometryOf({ shape, size }: Drawn, share: number): THREE.BufferGeometry {
  const [a, b, c] = size;
  const [around, along] = [40 * share, 24 * share];
  switch (shape) {
    case "sphere":
      return new THREE.SphereGeometry(a, around, along);
    case "ellipsoid":
      return new THREE.SphereGeometry(1, around, along);
    case "capsule":
      return new THREE.CapsuleGeometry(a, 2 * b, along / 2, around).rotateX(Math.PI / 2);
    case "cylinder":
      return new THREE.CylinderGeometry(a, a, 2 * b, around).rotateX(Math.PI / 2);
    case "box":
      return new THREE.BoxGeometry(2 * a, 2 * b, 2 * c);
    default:
      return new THREE.PlaneGeometry(2 * a, 2 * b);
  }
}

function materialOf({ rgba, shape, name }: Drawn, plain: boolean): THREE.Material {
  const key = rgba
    .slice(0, 3)
    .map((part) => Number(part.toFixed(2)))
    .join(",");
  const color = new THREE.Color(
    MATERIALS[key] ??
      new THREE.Color().setRGB(rgba[0], rgba[1], rgba[2], THREE.SRGBColorSpace).getHex(),
  );
  const target = name === "target";
  const look = {
    color,
    transparent: target || rgba[3] < 1,
    opacity: target ? 0.55 : rgba[3],
    emissive: target ? color : new THREE.Color(0),
    emissiveIntensity: target ? 0.35 : 0,
    side: shape === "plane" ? THREE.DoubleSide : THREE.FrontSide,
  };
  if (plain) return new THREE.MeshLambertMaterial(look);
  return new THREE.MeshStandardMaterial({ ...look, roughness: 0.45, metalness: 0.02 });
}
